//! Modules that answer as a test configures them, including bytes that are no message.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use nlb_proto::*;
use prost::bytes::{Buf, BufMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

use super::fleet::{registration_at, with_metadata, without_control};
use super::nlb::Nlb;

/// A module's answer to a call, by the call's name.
pub type Answers = fn(call: &str) -> Result<Vec<u8>, Status>;

#[derive(Clone, Copy)]
pub enum Fake {
    Answers(Answers),
    Silent,
    /// No server listens at its address.
    Unreachable,
    /// A server of another protocol listens at its address.
    NotGrpc,
}

impl Fake {
    pub const REFUSES: Fake = Fake::Answers(|_| Err(Status::failed_precondition("busy")));
    pub const UNIMPLEMENTED: Fake =
        Fake::Answers(|call| Err(Status::unimplemented(format!("no {call} here"))));
    pub const GARBLED: Fake = Fake::Answers(|_| Ok(vec![0xff; 9]));
    /// Accepts all calls, with empty answers.
    pub const CONFIRMS: Fake = Fake::Answers(|call| {
        Ok(match call {
            "GetStatus" | "HealthCheck" | "GetStats" | "GetMetrics" | "GetConfig" | "GetRateLimits" => {
                Vec::new()
            }
            // `success`, or `can_handle`.
            _ => vec![0x08, 0x01],
        })
    });
}

/// The calls that a module got.
#[derive(Clone, Default)]
pub struct FakeHandle {
    messages: Arc<Mutex<Vec<Message>>>,
    /// Connections: how many there were, and how many of them are open.
    pub open: watch::Sender<(u32, u32)>,
    stop: Arc<Notify>,
}

struct Message {
    call: String,
    /// The call's metadata `deployment`.
    deployment: Option<String>,
    content: Vec<u8>,
}

impl FakeHandle {
    pub fn calls(&self) -> Vec<String> {
        self.messages.lock().unwrap().iter().map(|message| message.call.clone()).collect()
    }

    /// Ends the module's server and waits until its connections are closed.
    pub async fn end(&self) {
        self.stop.notify_one();
        let mut open = self.open.subscribe();
        open.wait_for(|(_, open)| *open == 0).await.expect("the sender is our own");
    }

    /// The last message of this call. Other calls may have followed: the NLB also calls modules by itself.
    pub fn last<M: prost::Message + Default>(&self, call: &str) -> Option<M> {
        let messages = self.messages.lock().unwrap();
        let last = messages.iter().rfind(|message| message.call == call)?;
        Some(M::decode(&last.content[..]).expect("the NLB sends whole messages"))
    }

    /// The deployment that the last message of this call named.
    pub fn last_deployment(&self, call: &str) -> Option<String> {
        let messages = self.messages.lock().unwrap();
        messages.iter().rfind(|message| message.call == call)?.deployment.clone()
    }
}

impl Nlb {
    /// Registers an instance of this version at 10.0.0.`host`, whose control side is a fake.
    pub async fn add_fake(&mut self, instance_id: &str, host: u8, version: &str, fake: Fake) -> FakeHandle {
        self.add_checked_fake(instance_id, host, version, fake, None).await
    }

    /// Registers a fake with a health check.
    pub async fn add_checked_fake(
        &mut self,
        instance_id: &str,
        host: u8,
        version: &str,
        fake: Fake,
        health_config: Option<HealthCheckConfig>,
    ) -> FakeHandle {
        let request = RegisterModuleRequest { health_config, ..registration_at(instance_id, host, version) };
        self.add_fake_as(request, fake).await
    }

    /// Registers a fake by this request, whose address stays that of its data path.
    pub async fn add_fake_as(&mut self, mut request: RegisterModuleRequest, fake: Fake) -> FakeHandle {
        let module = FakeHandle::default();
        if matches!(fake, Fake::Unreachable) {
            self.add(without_control(request)).await;
            return module;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let instance = request.instance.take().expect("a registration names an instance");
        let (host, _) = instance.address.rsplit_once(':').expect("addresses have a port");
        let mut instance = with_metadata(instance.clone(), &[("data_address", host)]);
        instance.address = listener.local_addr().unwrap().to_string();
        tokio::spawn(serve(listener, fake, module.clone()));
        self.add(RegisterModuleRequest { instance: Some(instance), ..request }).await;
        module
    }
}

async fn serve(listener: TcpListener, fake: Fake, module: FakeHandle) {
    if matches!(fake, Fake::NotGrpc) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            // The caller may have closed the connection already.
            let _ = stream.write_all(b"220 mail.example.com ESMTP\r\n").await;
        }
    }
    let open = module.open.clone();
    let connections = TcpListenerStream::new(listener).map(move |stream| {
        open.send_modify(|(all, now)| (*all, *now) = (*all + 1, *now + 1));
        stream.map(|stream| Connection { stream, open: open.clone() })
    });
    let stop = module.stop.clone();
    let server = tonic::transport::Server::builder().add_service(Server { fake, module });
    let served = server.serve_with_incoming_shutdown(connections, async move { stop.notified().await });
    served.await.expect("the server runs");
}

/// Counts as open while it exists.
struct Connection {
    stream: TcpStream,
    open: watch::Sender<(u32, u32)>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.send_modify(|(_, now)| *now -= 1);
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[derive(Clone)]
struct Server {
    fake: Fake,
    module: FakeHandle,
}

impl NamedService for Server {
    const NAME: &'static str = "marchproxy.ModuleService";
}

type Answer<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl Service<http::Request<Body>> for Server {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let call = Call { name, server: self.clone() };
        Box::pin(async move { Ok(tonic::server::Grpc::new(Bytes).unary(call, request).await) })
    }
}

struct Call {
    name: String,
    server: Server,
}

impl Service<Request<Vec<u8>>> for Call {
    type Response = Response<Vec<u8>>;
    type Error = Status;
    type Future = Answer<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        assert!(request.metadata().contains_key("nlb-passed-on"), "calls that are passed on are marked");
        let Call { name, server } = self;
        let deployment = request.metadata().get("deployment").map(|name| name.to_str().unwrap().to_owned());
        let message = Message { call: name.clone(), deployment, content: request.into_inner() };
        server.module.messages.lock().unwrap().push(message);
        match server.fake {
            Fake::Answers(answers) => Box::pin(std::future::ready(answers(name).map(Response::new))),
            Fake::Silent | Fake::Unreachable | Fake::NotGrpc => Box::pin(std::future::pending()),
        }
    }
}

/// Messages as bytes, without decoding.
pub struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Bytes;
    type Decoder = Bytes;

    fn encoder(&mut self) -> Bytes {
        Bytes
    }

    fn decoder(&mut self) -> Bytes {
        Bytes
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

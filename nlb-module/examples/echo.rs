//! A module that answers TCP, UDP and HTTP with its name, so that a client sees which instance served it.
//!
//! Every line of a TCP connection and every datagram is sent back with the instance id in front; an HTTP GET
//! is answered with the instance id. All three share one port.

use std::io::{self, Error, IsTerminal, stdout};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use clap::Parser;
use nlb_module::proto::{CanHandleRequest, CanHandleResponse, Named as _};
use nlb_module::{
    Connection, Control, HealthCheckConfig, Instance, ModuleType, Protocol, Route, Scaler, Serve, State,
    Status, async_trait,
};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

/// A module of the MarchProxy NLB that answers with its name
#[derive(Parser)]
struct Args {
    /// Instance id: the name in all answers
    #[arg(long)]
    name: String,
    /// Type of module, such as ALB or DBLB
    #[arg(long = "type", default_value = "ALB", value_parser = module_type)]
    module_type: ModuleType,
    #[arg(long, default_value = "v1")]
    version: String,
    /// Share of new flows among instances of the same version
    #[arg(long, default_value_t = 100)]
    weight: u32,
    /// The most flows at a time; 0 means unlimited
    #[arg(long, default_value_t = 0, value_name = "FLOWS")]
    max_connections: u32,
    /// Serve TCP, UDP and HTTP here (repeatable)
    #[arg(long, default_value = "[::]:8080")]
    listen: Vec<SocketAddr>,
    /// The NLB's gRPC address
    #[arg(long, default_value = "http://127.0.0.1:50051", value_name = "URL")]
    nlb: String,
    /// What clients connect to (repeatable): an address of the NLB and a port, for TCP and UDP
    #[arg(long, value_name = "ADDRESS:PORT")]
    vip: Vec<SocketAddr>,
    /// The priority of its routes: instances with a lower one stand by
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_name = "NUMBER")]
    route_priority: i32,
    /// How packets reach this module: nat, dsr-l2, dsr-ipip or gue
    #[arg(long)]
    mode: Option<String>,
    /// More metadata for the NLB (repeatable), such as data_address=10.0.0.5
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
    /// Where ModuleService listens
    #[arg(long, default_value = "0.0.0.0:0")]
    control: SocketAddr,
    /// Seconds between heartbeats, instead of the interval that the NLB asks for
    #[arg(long, value_name = "SECONDS")]
    heartbeat: Option<u64>,
    /// The NLB's health check of this module: tcp, http, grpc or module
    #[arg(long, value_name = "KIND")]
    check: Option<Check>,
    /// The port to check, instead of the one that traffic goes to
    #[arg(long, requires = "check", default_value_t = 0, value_name = "PORT")]
    check_port: u16,
    /// Seconds between checks, instead of the NLB's default
    #[arg(long, requires = "check", default_value_t = 0, value_name = "SECONDS")]
    check_interval: i32,
    /// Reset every TCP connection instead of answering, as a bad release would: to see a promotion rolled
    /// back
    #[arg(long)]
    broken: bool,
    /// Answer CanHandle with the priority in this file for every route; without the file, that no route can
    /// be handled
    #[arg(long, value_name = "FILE", conflicts_with = "scaler")]
    priority: Option<PathBuf>,
    /// Start and end further instances of this program when the NLB requests it. They listen on the ports
    /// after these; configure scaling by metadata such as scaling.target_connections=100
    #[arg(long)]
    scaler: bool,
    /// Drain and end at the end of standard input, because the process that started this one is gone
    #[arg(long)]
    scaled: bool,
    /// Seconds that open connections may take to finish after SIGTERM
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    drain: u64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Check {
    Tcp,
    Http,
    Grpc,
    Module,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_ansi(stdout().is_terminal()).with_max_level(tracing::Level::INFO).init();
    let args = Args::parse();
    let mut instance = Instance::new(&args.name, args.module_type)
        .nlb(&args.nlb)
        .version(&args.version)
        .weight(args.weight)
        .max_connections(args.max_connections)
        .control_listen(args.control)
        .drain_timeout(std::time::Duration::from_secs(args.drain));
    for address in &args.listen {
        instance = instance.listen_tcp(*address).listen_udp(*address);
    }
    for route in routes(&args) {
        instance = instance.route(route);
    }
    if let Some(kind) = args.check {
        instance = instance.health_check(health_check(kind, &args));
    }
    if let Some(file) = &args.priority {
        instance = instance.control(FromFile { file: file.clone() });
    }
    if args.scaled {
        instance = instance.ends_with_stdin();
    }
    if args.scaler {
        instance = instance.control(Scaler::new(further_instances(&args)?));
    }
    for (key, value) in
        args.mode.iter().map(|mode| ("forward_mode".to_owned(), mode.clone())).chain(args.metadata)
    {
        instance = instance.metadata(key, value);
    }
    if let Some(seconds) = args.heartbeat {
        instance = instance.heartbeat_interval(std::time::Duration::from_secs(seconds));
    }
    instance.run(Echo { name: args.name, broken: args.broken }).await?;
    Ok(())
}

struct Echo {
    name: String,
    broken: bool,
}

impl Serve for Echo {
    async fn connection(&self, mut connection: Connection) -> io::Result<()> {
        if self.broken {
            // The unread input makes the kernel reset the connection.
            connection.read_u8().await?;
            return Err(Error::other("reset by --broken"));
        }
        let mut stream = BufReader::new(connection);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).await? > 0 {
            if line.starts_with(b"GET ") {
                self.answer_http(&mut stream).await?;
            } else {
                stream.write_all(&self.signed(&line)).await?;
            }
            line.clear();
        }
        Ok(())
    }

    async fn datagram(&self, payload: &[u8], _client: SocketAddr) -> io::Result<Option<Vec<u8>>> {
        Ok(Some(self.signed(payload)))
    }
}

/// A module whose CanHandle answer follows a file.
struct FromFile {
    file: PathBuf,
}

#[async_trait]
impl Control for FromFile {
    async fn can_handle(&self, _: &State, request: CanHandleRequest) -> Result<CanHandleResponse, Status> {
        if let (Some(route), Some(client)) = (&request.route, request.context.get("source_address")) {
            tracing::info!("{client} sent a packet for {}, which no route covers", route.route_id);
        }
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let priority: Option<i32> = text.trim().parse().ok();
        let reason = format!("priority of {}", self.file.display());
        let (can_handle, priority) = (priority.is_some(), priority.unwrap_or_default());
        Ok(CanHandleResponse { can_handle, priority, reason, ..CanHandleResponse::default() })
    }
}

impl Echo {
    fn signed(&self, text: &[u8]) -> Vec<u8> {
        [self.name.as_bytes(), b" ", text].concat()
    }

    async fn answer_http(
        &self,
        stream: &mut (impl AsyncBufReadExt + AsyncRead + AsyncWrite + Unpin),
    ) -> io::Result<()> {
        let mut header = String::new();
        // Up to the empty line that ends the headers.
        while stream.read_line(&mut header).await? > 2 {
            header.clear();
        }
        let body = format!("{}\n", self.name);
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all((head + &body).as_bytes()).await
    }
}

/// One route for TCP and one for UDP for each VIP. Replicas give them the same ids, and so share one pool.
fn routes(args: &Args) -> impl Iterator<Item = Route> {
    let port = args.listen[0].port();
    args.vip.iter().flat_map(move |vip| {
        [Protocol::Tcp, Protocol::Udp].map(|protocol| Route {
            route_id: format!("echo-{}-{}-{}", protocol.as_str_name().to_lowercase(), vip.ip(), vip.port()),
            protocol: protocol.into(),
            destination_pattern: vip.ip().to_string(),
            destination_port: vip.port().into(),
            priority: args.route_priority,
            metadata: [("listen_port".to_owned(), port.to_string())].into(),
            ..Route::default()
        })
    })
}

fn health_check(kind: Check, args: &Args) -> HealthCheckConfig {
    let protocol = match kind {
        Check::Tcp => Protocol::Tcp,
        Check::Http => Protocol::Http,
        Check::Grpc => Protocol::Grpc,
        Check::Module => Protocol::Unspecified,
    };
    let by_module = matches!(kind, Check::Module).then(|| ("check".to_owned(), "module".to_owned()));
    HealthCheckConfig {
        interval_seconds: args.check_interval,
        health_check_port: args.check_port.into(),
        health_check_protocol: protocol.into(),
        metadata: by_module.into_iter().collect(),
        ..HealthCheckConfig::default()
    }
}

/// The commands of further instances: those of this one, with other names and ports.
fn further_instances(args: &Args) -> io::Result<impl Fn(u32) -> Command + Send + Sync + 'static> {
    let program = std::env::current_exe()?;
    let (name, listen) = (args.name.clone(), args.listen.clone());
    let mut shared = vec![format!("--version={}", args.version), format!("--weight={}", args.weight)];
    shared.extend([format!("--nlb={}", args.nlb), format!("--drain={}", args.drain), "--scaled".to_owned()]);
    shared.push(format!("--max-connections={}", args.max_connections));
    shared.extend(args.vip.iter().map(|vip| format!("--vip={vip}")));
    shared.push(format!("--route-priority={}", args.route_priority));
    shared.extend(args.mode.iter().map(|mode| format!("--mode={mode}")));
    shared.extend(args.heartbeat.iter().map(|seconds| format!("--heartbeat={seconds}")));
    // Only the scaler has the group's policy.
    let metadata = args.metadata.iter().filter(|(key, _)| !key.starts_with("scaling."));
    shared.extend(metadata.map(|(key, value)| format!("--metadata={key}={value}")));
    Ok(move |number: u32| {
        let mut command = Command::new(&program);
        command.args(&shared).arg(format!("--name={name}-{number}"));
        for address in &listen {
            let port = address.port().saturating_add(number as u16);
            command.arg(format!("--listen={}", SocketAddr::new(address.ip(), port)));
        }
        command
    })
}

fn module_type(name: &str) -> Result<ModuleType, String> {
    ModuleType::by_name(name).ok_or_else(|| "is none of ALB, DBLB, AILB, RTMP and NLB".to_owned())
}

fn pair(text: &str) -> std::result::Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` has no `=`; write KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

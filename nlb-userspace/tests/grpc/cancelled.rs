//! A call that is cancelled before it starts changes nothing: HTTP/2 frames of a client to a daemon that is
//! not running meanwhile.

use std::net::SocketAddr;
use std::time::Duration;

use nlb_proto::*;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::fleet::registration;
use super::nlb::Nlb;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

const CANCEL: [u8; 4] = 8u32.to_be_bytes();

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Header fields that need no table.
fn headers(stream: u32, call: &str) -> Vec<u8> {
    let path = format!("/marchproxy.NLBService/{call}");
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path.as_str()),
        (":authority", "nlb"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")][..], text.as_bytes()].concat();
    let block: Vec<u8> =
        fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect();
    frame(HEADERS, END_HEADERS, stream, &block)
}

fn message(stream: u32, message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).expect("a short message").to_be_bytes();
    frame(DATA, END_STREAM, stream, &[&[0], &length[..], &bytes].concat())
}

async fn connect(address: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.set_nodelay(true).unwrap();
    let preface = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat();
    client.write_all(&preface).await.unwrap();
    client
}

/// Waits until the server has read all that was written: it answers pings in order.
async fn ping(client: &mut TcpStream) {
    client.write_all(&frame(PING, 0, 0, b"pingpong")).await.unwrap();
    let answered = async {
        loop {
            let mut head = [0; 9];
            client.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            client.read_exact(&mut payload).await.unwrap();
            if (head[3], head[4]) == (PING, ACK) && payload == b"pingpong" {
                break;
            }
        }
    };
    timeout(Duration::from_secs(60), answered).await.expect("the server answers pings");
}

/// Calls that were in flight at the start are done at the end: calls start in the order in which they were
/// read.
async fn until_another_is_registered(nlb: &mut Nlb, client: &mut TcpStream, stream: u32) {
    let another = registration("another");
    let call = [headers(stream, "RegisterModule"), message(stream, &another)].concat();
    client.write_all(&call).await.unwrap();
    let registered = async {
        while nlb.listed("another").await.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(60), registered).await.expect("a call that is not cancelled is processed");
}

#[tokio::test]
async fn a_call_that_is_read_with_its_cancellation_changes_nothing() {
    let mut nlb = Nlb::start().await;
    let mut client = connect(nlb.address).await;
    let call =
        [headers(1, "RegisterModule"), message(1, &registration("alb-1")), frame(RST_STREAM, 0, 1, &CANCEL)];
    client.write_all(&call.concat()).await.unwrap();
    until_another_is_registered(&mut nlb, &mut client, 3).await;
    assert!(nlb.listed("alb-1").await.is_none());
}

#[tokio::test]
async fn nor_does_one_whose_message_comes_late() {
    let mut nlb = Nlb::start().await;
    let mut client = connect(nlb.address).await;
    client.write_all(&headers(1, "RegisterModule")).await.unwrap();
    ping(&mut client).await;
    let rest = [message(1, &registration("alb-1")), frame(RST_STREAM, 0, 1, &CANCEL)];
    client.write_all(&rest.concat()).await.unwrap();
    until_another_is_registered(&mut nlb, &mut client, 3).await;
    assert!(nlb.listed("alb-1").await.is_none());
}

#[tokio::test]
async fn a_cancelled_call_of_a_registered_module_leaves_it_as_it_is() {
    let mut nlb = Nlb::start().await;
    let registration_id = nlb.add(registration("alb-1")).await;
    let before = nlb.registry.snapshot().record("alb-1").unwrap().clone();
    let mut client = connect(nlb.address).await;
    let leave = UnregisterModuleRequest {
        instance_id: "alb-1".into(),
        registration_id: registration_id.clone(),
        ..Default::default()
    };
    let more =
        UpdateRoutingRequest { source_instance_id: "alb-1".into(), replace_all: true, ..Default::default() };
    let sick = HeartbeatRequest {
        instance_id: "alb-1".into(),
        registration_id,
        status: HealthStatus::Unhealthy.into(),
        ..Default::default()
    };
    let calls = [
        [headers(1, "UnregisterModule"), message(1, &leave), frame(RST_STREAM, 0, 1, &CANCEL)].concat(),
        [headers(3, "UpdateRouting"), message(3, &more), frame(RST_STREAM, 0, 3, &CANCEL)].concat(),
        [headers(5, "Heartbeat"), message(5, &sick), frame(RST_STREAM, 0, 5, &CANCEL)].concat(),
    ];
    client.write_all(&calls.concat()).await.unwrap();
    until_another_is_registered(&mut nlb, &mut client, 7).await;
    let after = nlb.registry.snapshot().record("alb-1").unwrap().clone();
    assert_eq!((after.registration, after.drain), (before.registration, before.drain));
}

//! Clients that are generated in other languages call the server.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::nlb::Nlb;

/// A directory of the test's own, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("nlb-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a temporary directory");
        Scratch(directory)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn generate(language: &str, out: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/generate.sh");
    finished(Command::new(script).arg(language).arg(out).output());
}

fn finished(output: std::io::Result<Output>) -> String {
    let output = output.expect("it starts; `cargo xtask setup` installs it");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).expect("text")
}

const REGISTER: &str = r#"
import sys
import grpc
from marchproxy import module_pb2, module_pb2_grpc, nlb_pb2, nlb_pb2_grpc, types_pb2

channel = grpc.insecure_channel(sys.argv[1])
nlb = nlb_pb2_grpc.NLBServiceStub(channel)
instance = types_pb2.ModuleInstance(
    instance_id="python-1", module_type=types_pb2.MODULE_TYPE_ALB, address="10.0.0.1:50051", version="v1")
route = types_pb2.Route(
    route_id="web", protocol=types_pb2.PROTOCOL_TCP, destination_pattern="192.0.2.1", destination_port=80)
answer = nlb.RegisterModule(nlb_pb2.RegisterModuleRequest(instance=instance, initial_routes=[route]))
assert answer.success, answer.message
beat = nlb_pb2.HeartbeatRequest(instance_id="python-1", registration_id=answer.registration_id)
assert nlb.Heartbeat(beat).acknowledged
front = module_pb2_grpc.ModuleServiceStub(channel)
listed = front.GetInstances(module_pb2.GetInstancesRequest())
print(",".join(instance.instance_id for instance in listed.instances))
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_registers_and_sends_a_heartbeat() {
    let nlb = Nlb::start().await;
    let scratch = Scratch::new("python");
    generate("python", &scratch.0);
    let mut python = Command::new("/usr/bin/python3");
    // A proxy from the environment must not be used for loopback.
    python
        .args(["-c", REGISTER, &nlb.address.to_string()])
        .env("PYTHONPATH", &scratch.0)
        .env("no_grpc_proxy", "*");
    let said = tokio::task::spawn_blocking(move || finished(python.output())).await.unwrap();
    assert_eq!(said.trim(), "python-1");
    assert!(nlb.registry.snapshot().record("python-1").is_ok());
}

/// The client registers by the codec of the packages that `cargo xtask setup` installs: those that lack a
/// part compile, and panic at the first message.
#[tokio::test(flavor = "multi_thread")]
async fn a_go_client_passes_every_message_registers_and_sends_a_heartbeat() {
    let nlb = Nlb::start().await;
    let scratch = Scratch::new("go");
    generate("go", &scratch.0.join("src"));
    let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/grpc/client.go");
    let mut go = Command::new("go");
    go.arg("run")
        .arg(client)
        .arg(nlb.address.to_string())
        // Debian's libraries are in a GOPATH of their own.
        .env("GO111MODULE", "off")
        .env("GOPATH", format!("{}:/usr/share/gocode", scratch.0.display()))
        // gRPC is compiled once, and not at each run.
        .env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("go"));
    let said = tokio::task::spawn_blocking(move || finished(go.output())).await.unwrap();
    assert_eq!(said.trim(), "go-1 HEALTH_STATUS_HEALTHY true");
    assert!(nlb.registry.snapshot().record("go-1").is_ok());
}

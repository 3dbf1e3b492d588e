//! Messages that tests start from.

use nlb_proto::*;

use super::nlb::Nlb;

/// An ALB of version v1 at 10.0.0.1.
pub fn instance(instance_id: &str) -> ModuleInstance {
    ModuleInstance {
        instance_id: instance_id.into(),
        module_type: ModuleType::Alb.into(),
        address: "10.0.0.1:50051".into(),
        version: "v1".into(),
        ..Default::default()
    }
}

/// A route for TCP port 80 of 192.0.2.1.
pub fn route(route_id: &str) -> Route {
    Route {
        route_id: route_id.into(),
        protocol: Protocol::Tcp.into(),
        destination_pattern: "192.0.2.1".into(),
        destination_port: 80,
        ..Default::default()
    }
}

pub fn registration(instance_id: &str) -> RegisterModuleRequest {
    RegisterModuleRequest {
        instance: Some(instance(instance_id)),
        initial_routes: vec![route("web")],
        ..Default::default()
    }
}

/// A registration at 10.0.0.`host`, with this version.
pub fn registration_at(instance_id: &str, host: u8, version: &str) -> RegisterModuleRequest {
    let address = format!("10.0.0.{host}:50051");
    let instance = ModuleInstance { address, version: version.into(), ..instance(instance_id) };
    RegisterModuleRequest { instance: Some(instance), ..registration(instance_id) }
}

/// The same module with its gRPC server on loopback, where no server listens: calls that are passed on to it
/// stay on this machine.
pub fn without_control(mut request: RegisterModuleRequest) -> RegisterModuleRequest {
    let instance = request.instance.as_mut().expect("a registration names an instance");
    let (host, _) = instance.address.rsplit_once(':').expect("addresses have a port");
    instance.metadata.insert("data_address".to_owned(), host.to_owned());
    instance.address = "127.0.0.1:9".to_owned();
    request
}

pub fn with_metadata(mut instance: ModuleInstance, entries: &[(&str, &str)]) -> ModuleInstance {
    instance.metadata.extend(entries.iter().map(|(key, value)| (key.to_string(), value.to_string())));
    instance
}

impl Nlb {
    /// Registers, and returns the registration_id.
    pub async fn add(&mut self, request: RegisterModuleRequest) -> String {
        let answer = self.modules.register_module(request).await.expect("well formed").into_inner();
        assert!(answer.success, "{}", answer.message);
        answer.registration_id
    }

    pub async fn listed(&mut self, instance_id: &str) -> Option<ModuleInstance> {
        let answer = self.modules.list_modules(ListModulesRequest::default()).await.unwrap().into_inner();
        answer.modules.into_iter().find(|instance| instance.instance_id == instance_id)
    }
}

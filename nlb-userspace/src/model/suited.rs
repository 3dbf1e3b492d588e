//! Whether a module can serve a route in its forward mode.

use super::{Destination, ForwardMode, Module, Route};

impl Route {
    /// Whether the module can serve the route; if not, why.
    pub fn suits(&self, module: &Module) -> Result<(), String> {
        self.suits_ports(module).and_then(|()| self.suits_family(module))
    }

    /// Direct server return does not change ports.
    pub fn suits_ports(&self, module: &Module) -> Result<(), String> {
        let listen_port = self.listen_port.or(module.listen_port);
        let mode = match module.mode {
            ForwardMode::Nat => return Ok(()),
            ForwardMode::DsrL2 => "dsr-l2",
            ForwardMode::DsrIpip => "dsr-ipip",
            ForwardMode::Gue => "gue",
        };
        match listen_port {
            Some(port) if Some(port) != self.port => Err(format!(
                "listen_port {port} differs from the destination port, which forward_mode {mode} cannot change; make \
                 them equal, or use forward_mode nat"
            )),
            _ => Ok(()),
        }
    }

    /// NAT does not translate between address families; direct server return carries both.
    fn suits_family(&self, module: &Module) -> Result<(), String> {
        let vip_is_v6 = match self.destination {
            _ if module.mode != ForwardMode::Nat => return Ok(()),
            Destination::EveryVip => return Ok(()),
            Destination::Address(address) => address.is_ipv6(),
            Destination::Prefix(prefix) => prefix.addr().is_ipv6(),
        };
        let (family, served) = match vip_is_v6 {
            true => ("IPv6", module.data.v6.is_some()),
            false => ("IPv4", module.data.v4.is_some()),
        };
        if served {
            return Ok(());
        }
        Err(format!(
            "its destination is {family} and the module has no {family} address, which forward_mode nat needs; list one \
             in metadata data_address"
        ))
    }
}

//! Path MTUs towards modules, as ICMP errors about tunnel packets name them, and the other errors of that
//! kind.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use nlb_common::abi::NextHop;
use tokio::time::Instant;
use tracing::{info, warn};

use super::tunnel_errors::{Problem, TunnelError};

/// How long a path MTU holds, as in Linux. The path may take longer packets again, and only a packet that is
/// too long can show that it does not (RFC 1191 section 6.3).
const TTL: Duration = Duration::from_secs(600);

/// How often an error that is no path MTU is logged for a module.
const WARN_EVERY: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(crate) struct PathMtus {
    known: BTreeMap<IpAddr, PathMtu>,
    warned: BTreeMap<IpAddr, Instant>,
}

struct PathMtu {
    mtu: u16,
    /// The next hop of that path: another one begins another path.
    via: NextHop,
    until: Instant,
}

impl PathMtus {
    /// Takes an error about a packet that was sent by this next hop. Returns whether the path MTU changes:
    /// not below `least`.
    pub(crate) fn take(&mut self, error: &TunnelError, via: NextHop, least: u16) -> bool {
        let TunnelError { module, sender, problem, .. } = error;
        match *problem {
            Problem::TooBig { mtu } => {
                let is_new = mtu >= least && self.of(*module, via).is_none_or(|known| mtu < known);
                if is_new {
                    info!("the path to {module} takes packets of up to {mtu} bytes, says {sender}");
                    self.known.insert(*module, PathMtu { mtu, via, until: Instant::now() + TTL });
                }
                is_new
            }
            Problem::Undelivered(name) => {
                let now = Instant::now();
                if self.warned.get(module).is_none_or(|warned| *warned + WARN_EVERY <= now) {
                    warn!("tunnel packets do not reach {module}: {name}, says {sender}");
                    self.warned.insert(*module, now);
                }
                false
            }
        }
    }

    /// The MTU of the path to a module by this next hop, if an error has named one.
    pub(crate) fn of(&self, module: IpAddr, via: NextHop) -> Option<u16> {
        let known = self.known.get(&module).filter(|known| known.via == via);
        known.filter(|known| known.until > Instant::now()).map(|known| known.mtu)
    }

    /// Forgets what is too old, and modules that are gone.
    pub(crate) fn retain(&mut self, is_module: impl Fn(&IpAddr) -> bool) {
        self.known.retain(|module, known| is_module(module) && known.until > Instant::now());
        self.warned.retain(|module, _| is_module(module));
    }
}

#[cfg(test)]
mod tests {
    use nlb_common::net::Mac;

    use super::*;

    fn too_big(mtu: u16) -> TunnelError {
        let [source, module, sender] = ["10.0.0.1", "10.0.9.2", "10.0.5.1"].map(|ip| ip.parse().unwrap());
        TunnelError { source, module, sender, problem: Problem::TooBig { mtu } }
    }

    fn hop(last: u8) -> NextHop {
        NextHop::new(Mac::new([2, 0, 0, 0, 0, last]), Mac::new([2; 6]), 3)
    }

    #[tokio::test(start_paused = true)]
    async fn a_path_mtu_holds_for_ten_minutes_and_for_its_path() {
        let (mut mtus, error) = (PathMtus::default(), too_big(1400));
        assert!(mtus.take(&error, hop(1), 552));
        assert_eq!(mtus.of(error.module, hop(1)), Some(1400));
        assert_eq!(mtus.of(error.module, hop(2)), None, "another router");
        tokio::time::advance(TTL - Duration::from_secs(1)).await;
        assert_eq!(mtus.of(error.module, hop(1)), Some(1400));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(mtus.of(error.module, hop(1)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_smallest_link_of_the_path_counts() {
        let mut mtus = PathMtus::default();
        for (named, holds) in [(1400, 1400), (1300, 1300), (1400, 1300)] {
            assert_eq!(mtus.take(&too_big(named), hop(1), 552), named != 1400 || holds == 1400);
            assert_eq!(mtus.of(too_big(0).module, hop(1)), Some(holds));
        }
        assert!(!mtus.take(&too_big(1299), hop(1), 1328), "less than IPv6 inside needs");
        mtus.retain(|_| false);
        assert_eq!(mtus.of(too_big(0).module, hop(1)), None, "the module is gone");
    }
}

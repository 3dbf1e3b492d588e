//! Whether a desired state fits the maps: asked before it is accepted, so that one caller's excess does not hold up
//! everybody's changes.

use std::collections::{BTreeMap, BTreeSet};

use super::counted::Counted;
use super::pools::Pool;
use super::{Limits, Offers, TooMany, classifier};
use crate::model::{Backend, Desired};

/// Counts what [`super::compile`] would number. Our own addresses towards modules are not known here; they take a few
/// of `limits.addresses` more.
pub fn fits(desired: &Desired, limits: &Limits) -> Result<(), TooMany> {
    let offers = Offers::collect(desired, &Counted::default().renew(desired, limits.counted_routes));
    let services = classifier::services(&offers.by_vip, desired);
    // Those that do not fit below share a number here.
    let numbers: BTreeMap<&Backend, u16> =
        offers.backends.keys().zip((1..=u16::MAX).chain(std::iter::repeat(u16::MAX))).collect();
    let pool = |winners: &Vec<_>| Pool::new(winners, desired, |backend| numbers[backend]);
    let pools: BTreeSet<Pool> =
        services.iter().flat_map(|service| service.pools.values()).map(pool).collect();
    for (what, count, max, flag) in [
        ("backends", offers.backends.len(), limits.backends, "--max-backends"),
        ("services", services.len(), limits.services, "--max-services"),
        ("pools", pools.len(), limits.pools, "--max-pools"),
        ("VIPs and source addresses", offers.by_vip.len(), limits.addresses, "--max-vips"),
        ("rate limits", super::limits::enabled(desired).count(), limits.rate_limits, "--max-rate-limits"),
    ] {
        if count > usize::from(max) {
            return Err(TooMany { what, max, flag });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{Hops, MapImage, compile};
    use crate::model::Route;
    use crate::registry::fixtures::{registration, route};

    /// Two modules with two services on two VIPs, and a third for some of the clients of one.
    fn desired() -> Desired {
        let mut desired = Desired {
            vips: ["192.0.2.1", "192.0.2.2"].map(|vip| vip.parse().unwrap()).into(),
            ..Desired::default()
        };
        for instance_id in ["alb-1", "alb-2"] {
            let mut module = registration(instance_id).module;
            module.routes.insert("tls".into(), route(443).into());
            desired.modules.insert(instance_id.into(), module.into());
        }
        let internal = Route { source: "10.0.0.0/8".parse().ok(), ..route(80) };
        desired.operator_routes.insert("internal".into(), internal.into());
        desired
    }

    #[test]
    fn agrees_with_the_compiler() {
        let desired = desired();
        let plenty = Limits {
            backends: 100,
            services: 100,
            pools: 100,
            addresses: 100,
            rate_limits: 100,
            counted_routes: 100,
        };
        let refuses = |limits: &Limits| {
            let fits = fits(&desired, limits).err();
            let compiled = compile(&desired, &Hops::new(), &MapImage::empty(*limits)).err();
            assert_eq!(fits, compiled, "{limits:?}");
            fits.is_some()
        };
        assert!(!refuses(&plenty));
        type Narrow = fn(Limits, u16) -> Limits;
        let narrow: [Narrow; 4] = [
            |limits, backends| Limits { backends, ..limits },
            |limits, services| Limits { services, ..limits },
            |limits, pools| Limits { pools, ..limits },
            |limits, addresses| Limits { addresses, ..limits },
        ];
        for narrow in narrow {
            let least = (1..=100).find(|room| !refuses(&narrow(plenty, *room)));
            assert!(least.is_some_and(|least| least > 1), "{least:?}");
        }
    }
}

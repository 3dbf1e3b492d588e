//! Whether the ports for SNAT are apart from those of the host's own connections. A backend that both connect
//! to from one address and port would take one for the other.

use std::fs;
use std::ops::RangeInclusive;

use anyhow::bail;
use tracing::warn;

const RANGE: &str = "net.ipv4.ip_local_port_range";
const RESERVED: &str = "net.ipv4.ip_local_reserved_ports";

/// Fails if the kernel may choose one of these ports for a connection of the host. Linux has one range for
/// both families.
pub(super) fn check(snat: &RangeInclusive<u16>) -> anyhow::Result<()> {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/")));
    let (range, reserved) = match (read(RANGE), read(RESERVED)) {
        (Ok(range), Ok(reserved)) => (range, reserved),
        (Err(error), _) | (_, Err(error)) => {
            warn!("cannot tell whether --snat-ports are apart from {RANGE}: {error}");
            return Ok(());
        }
    };
    let Some(shared) = shared(snat, &range, &reserved) else { return Ok(()) };
    let text = |ports: &RangeInclusive<u16>| format!("{}-{}", ports.start(), ports.end());
    let (own, mut reserve) = (range.trim().replace(char::is_whitespace, "-"), reserved.trim().to_owned());
    if !reserve.is_empty() {
        reserve.push(',');
    }
    bail!(
        "--snat-ports {} overlaps {own}, the ports of this host's own connections ({RANGE}), so some of them would \
         fail; run `sysctl -w {RESERVED}={reserve}{}` to keep the host from these ports, or name others",
        text(snat),
        text(&shared),
    )
}

/// The part of the SNAT ports that the kernel may choose, from the first such port to the last.
fn shared(snat: &RangeInclusive<u16>, range: &str, reserved: &str) -> Option<RangeInclusive<u16>> {
    let mut ends = range.split_whitespace().filter_map(|end| end.parse::<u16>().ok());
    let (first, last) = (ends.next()?, ends.next()?);
    let reserved: Vec<RangeInclusive<u16>> = reserved.trim().split(',').filter_map(ports).collect();
    let mut free = (first.max(*snat.start())..=last.min(*snat.end()))
        .filter(|port| !reserved.iter().any(|range| range.contains(port)));
    let first = free.next()?;
    Some(first..=free.next_back().unwrap_or(first))
}

/// One element of the list of reserved ports: a port or a range.
fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_the_host_may_choose_are_found() {
        for (snat, range, reserved, expected) in [
            (1024..=32_767, "32768\t60999\n", "\n", None),
            (1024..=32_767, "1024\t65535\n", "\n", Some(1024..=32_767)),
            (1024..=32_767, "1024\t65535\n", "1024-32767\n", None),
            (1024..=32_767, "1024\t65535\n", "80,1024-2000,2001-32766\n", Some(32_767..=32_767)),
            (20_000..=40_000, "32768\t60999\n", "33000\n", Some(32_768..=40_000)),
            (61_000..=65_535, "32768\t60999\n", "\n", None),
            (61_000..=65_535, "32768\t65535\n", "61000-65534,65535\n", None),
        ] {
            assert_eq!(shared(&snat, range, reserved), expected, "{snat:?} {range:?} {reserved:?}");
        }
    }
}

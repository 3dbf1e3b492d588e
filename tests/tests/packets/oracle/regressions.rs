//! Sequences that once differed from the model, as they were printed.

use anyhow::{Result, bail};

use super::run::{Hook, Oracle};
use super::step::parse;

const SEQUENCES: &[(&str, &str)] = &[
    (
        "a first fragment with the length of the whole UDP datagram is valid",
        "next-hop 4 on
         module 4 nat-on-link
         frame 0200000000010200000000c108004500001d4242200040114c620a000002c000020a9c420035002900004f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4feeee # UDP 10.0.0.2 port 40002 to 192.0.2.10 port 53, fragment",
    ),
    (
        "a packet of the NLB that comes back records no flow",
        "next-hop 2 on
         module 2 nat
         frame 0200000000010200000000020800450000294242400040060c48c633ffffc000020a9c420050f0bce63e000000005002fa001e0d000038 # TCP flags 0x02 198.51.255.255 port 40002 to 192.0.2.10 port 80",
    ),
    (
        "closed ports are dropped if configured, also if a service is closed to this source only",
        "module 1 nat-never
         drop-closed on
         frame 0200000000010200000000c108004e00006d424240004006def9cb007132c000020a0101010101010101010101010101010101010101010101010101010101010101010101019c4201bbe40f5b23000000005011fa000e730000fcfcfcfcfcfcfcfcfcfcfcfcfcfcfcfcfcfcfcfcfcfcfcfcfcfcfcfcfcfcfcfcfceeeeeeeeeeeeeeeeee # TCP flags 0x11 203.0.113.50 port 40002 to 192.0.2.10 port 443, options",
    ),
];

/// Sequences at the TC ingress hook.
const AT_TC_INGRESS: &[(&str, &str)] = &[(
    "a UDP datagram over IPv6 without a checksum stays without one",
    "next-hop 3 on
     module 3 nat-never
     frame 0200000000010200000000c18100002a86dd6000123400081140fd00000000000000000000000000000220010db80000000000000000000000109c42003500080000",
)];

#[test]
fn recorded_sequences_match_the_model() -> Result<()> {
    for (hook, sequences) in
        [(Hook::Xdp, SEQUENCES), (Hook::Xdp, AT_TC_INGRESS), (Hook::TcIngress, AT_TC_INGRESS)]
    {
        let mut oracle = Oracle::new(hook)?;
        for (what, text) in sequences {
            if let Some(difference) = oracle.replay(&parse(text)?)? {
                bail!("{what}: {difference}");
            }
        }
    }
    Ok(())
}

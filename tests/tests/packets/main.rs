//! The data path on single packets: bytes in, verdict, bytes out, counters. Test names have the row numbers
//! of docs/datapath.md.

mod active;
mod broken;
mod capacity;
mod connection;
mod decap;
mod dsr;
mod flows;
mod fragments;
mod gue;
mod host;
mod icmp;
mod jumbo;
mod limits;
mod nat;
mod next_hop_cache;
mod oracle;
mod others;
mod punted;
mod quic;
mod random;
mod refusals;
mod routes;
mod snat_ports;
mod sources;
mod tunnels;
mod upcalls;

use nlb_testkit::{packet, rig};

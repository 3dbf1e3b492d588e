//! What the data path does with a packet: bytes in, verdict, bytes out, counters. The rows are numbered as in
//! docs/datapath.md.

mod active;
mod broken;
mod decap;
mod dsr;
mod flows;
mod fragments;
mod gue;
mod icmp;
mod jumbo;
mod limits;
mod nat;
mod oracle;
mod others;
mod quic;
mod random;
mod refusals;
mod routes;
mod sources;
mod tunnels;
mod upcalls;
mod waited;
mod ways;

use nlb_testkit::{packet, rig};

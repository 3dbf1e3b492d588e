//! What the data path does with a packet: bytes in, verdict, bytes out, counters. The rows are numbered as in
//! docs/datapath.md.

mod active;
mod broken;
mod decap;
mod dsr;
mod flows;
mod limits;
mod nat;
mod oracle;
mod others;
mod packet;
mod refusals;
mod rig;
mod upcalls;

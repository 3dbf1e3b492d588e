//! The programs that stand beside the balancer: those that it continues in by a tail call, its counterpart at TC ingress,
//! the receiving end of tunnels, and the injector of frames.

pub mod decap;
pub mod fragments;
pub mod gue;
pub mod icmp;
mod inject;
pub mod quic;
pub mod reject;
mod tc;
pub mod too_big;

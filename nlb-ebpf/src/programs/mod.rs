//! The programs beside the balancer: its tail calls, its counterpart at TC ingress, the receiving end of
//! tunnels, and the injection of frames.

pub mod decap;
pub mod fragments;
pub mod gue;
pub mod icmp;
mod inject;
pub mod quic;
mod redirects;
pub mod reject;
mod tc;
pub mod too_big;

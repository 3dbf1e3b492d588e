//! Has the kernel's failed redirects counted (`nlb-ebpf/src/programs/redirects.rs`).
//!
//! What XDP redirects counts as sent, and the kernel may find afterwards that the interface does not take it:
//! a veth whose other end has neither GRO nor an XDP program, or an interface that is down.

use std::net::UdpSocket;

use anyhow::Context;
use aya::Ebpf;
use aya::programs::RawTracePoint;
use aya::util::KernelVersion;
use nix::libc;
use nix::sys::socket::getsockopt;
use nlb_common::abi::RedirectFilter;

use super::errors::retry_verifier;
use super::kernel_types::KernelTypes;
use super::object::missing;
use crate::datapath::errors::error_chain;
use crate::datapath::maps::bpf::set_redirect_filter;

/// Before this kernel, devices refused packets only when they were handed over in batches.
const REFUSED_AT_ONCE: KernelVersion = KernelVersion::new(6, 3, 0);

/// Attaches the programs, until the object is dropped.
pub(super) fn attach(bpf: &mut Ebpf) -> anyhow::Result<()> {
    let types = KernelTypes::read()?;
    let filter = RedirectFilter {
        cookie: namespace_cookie().context("reading the cookie of the network namespace")?,
        dev_ifindex: types.offset(&["net_device", "ifindex"])?,
        dev_net: types.offset(&["net_device", "nd_net", "net"])?,
        net_cookie: types.offset(&["net", "net_cookie"])?,
        _pad: 0,
    };
    set_redirect_filter(bpf, filter)?;
    attach_to(bpf, "nlb_redirect_err", "xdp_redirect_err")?;
    if KernelVersion::current()? < REFUSED_AT_ONCE {
        attach_to(bpf, "nlb_devmap_xmit", "xdp_devmap_xmit")?;
    }
    Ok(())
}

fn attach_to(bpf: &mut Ebpf, name: &str, tracepoint: &str) -> anyhow::Result<()> {
    let program: &mut RawTracePoint = bpf.program_mut(name).ok_or_else(|| missing(name))?.try_into()?;
    retry_verifier(program, RawTracePoint::load)?;
    program.attach(tracepoint).map_err(|error| anyhow::anyhow!("{tracepoint}: {}", error_chain(&error)))?;
    Ok(())
}

/// The number by which the kernel distinguishes network namespaces while it runs.
fn namespace_cookie() -> anyhow::Result<u64> {
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"))?;
    Ok(getsockopt(&socket, NamespaceCookie)?)
}

#[derive(Clone, Copy)]
struct NamespaceCookie;

nix::getsockopt_impl!(
    NamespaceCookie,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64,
    nix::sys::socket::sockopt::GetStruct<u64>
);

//! A program that user space runs on a frame, to have it sent or received. It is attached to no interface.

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::bpf_clone_redirect;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

/// Sends the frame through the interface that the first word of the control block names; if the second word
/// is not 0, has it received there instead. Returns the result of the helper: 0 on success.
#[classifier]
pub fn nlb_inject(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: valid context; no pointer into the frame is kept.
    unsafe {
        let ingress = (*skb).cb[1] != 0;
        bpf_clone_redirect(skb, (*skb).cb[0], if ingress { BPF_F_INGRESS as u64 } else { 0 }) as i32
    }
}

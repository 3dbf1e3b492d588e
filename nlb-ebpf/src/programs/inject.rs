//! A program that user space runs on a frame of its own, to have it sent or taken in. It is attached nowhere.

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::bpf_clone_redirect;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

/// Sends the frame out of the interface that the first word of the control block names; or, where the second word is not 0, has
/// it come in there. Answers as the helper does: 0 if all is well.
#[classifier]
pub fn nlb_inject(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: valid context; no pointer into the frame is kept.
    unsafe {
        let comes_in = (*skb).cb[1] != 0;
        bpf_clone_redirect(skb, (*skb).cb[0], if comes_in { BPF_F_INGRESS as u64 } else { 0 }) as i32
    }
}

//! DNS as workloads see it: which answers come to the questions they have asked. Nothing is changed.
//!
//! An answer counts as the system's resolver would have it: it comes to the socket that asked, from
//! whom it asked, with the number of the question. Who merely sends datagrams to a workload tells the
//! agent nothing.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_skb_cgroup_id, bpf_skb_load_bytes};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use underpass_abi::{Answer, Asked, Counter, Questions};

use crate::maps::{ANSWERS, CONFIG, QUESTIONS, count};
use crate::socket::{of_packet, storage, storage_or_zero};
use crate::udp::{Datagram, PORT_DNS};

const PROCEED: i32 = 1;

/// Passes an answer on to the agent, before the workload sees it.
#[cgroup_skb(ingress)]
pub fn observe_answer(ctx: SkBuffContext) -> i32 {
    let _ = observe(&ctx);
    PROCEED
}

/// Remembers a question, with the socket that asks it.
#[inline(always)]
pub fn note_question(ctx: &SkBuffContext, datagram: &Datagram) -> Option<()> {
    if !is_observed() {
        return None;
    }
    let asked = Asked {
        server: datagram.destination.address,
        number: ctx.load(datagram.payload).ok()?,
        used: 1,
    };
    // SAFETY: the socket is the context's; zero is no question.
    let questions = unsafe { storage_or_zero(&QUESTIONS, of_packet(ctx)?) }?;
    let slot = (questions.next & (Questions::MAX - 1)) as usize;
    questions.asked[slot] = asked;
    questions.next = questions.next.wrapping_add(1);
    Some(())
}

#[inline(always)]
fn observe(ctx: &SkBuffContext) -> Option<()> {
    let datagram = Datagram::read(ctx)?;
    if datagram.source_port(ctx)? != PORT_DNS || !is_observed() {
        return None;
    }
    let server = datagram.source(ctx)?;
    let number: [u8; 2] = ctx.load(datagram.payload).ok()?;
    // SAFETY: the socket is the context's.
    let questions = unsafe { storage(&QUESTIONS, of_packet(ctx)?) }?;
    let mut expected = false;
    for asked in &mut questions.asked {
        if asked.used != 0 && asked.number == number && asked.server.0 == server.0 {
            // One question has one answer.
            asked.used = 0;
            expected = true;
            break;
        }
    }
    if !expected {
        return None;
    }
    let length = ctx.len().checked_sub(datagram.payload as u32)?;
    if length == 0 || length > Answer::MAX {
        count(Counter::AnswerLost);
        return None;
    }
    let Some(mut entry) = ANSWERS.reserve(0) else {
        count(Counter::AnswerLost);
        return None;
    };
    // In this form every verifier sees the bound.
    let length = ((length - 1) & (Answer::MAX - 1)) + 1;
    let answer: *mut Answer = entry.as_mut_ptr();
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: the entry has room for an answer; the helper writes no more than it is told.
    let loaded = unsafe {
        (&raw mut (*answer).workload).write(bpf_skb_cgroup_id(skb));
        (&raw mut (*answer).length).write(length);
        (&raw mut (*answer)._pad).write(0);
        bpf_skb_load_bytes(
            skb.cast(),
            datagram.payload as u32,
            (&raw mut (*answer).message).cast(),
            length,
        )
    };
    if loaded == 0 {
        entry.submit(0);
    } else {
        entry.discard(0);
    }
    Some(())
}

#[inline(always)]
fn is_observed() -> bool {
    CONFIG.get(0).is_some_and(|config| config.observe_dns != 0)
}

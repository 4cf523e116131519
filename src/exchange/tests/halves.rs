//! The two pure halves against a model (T41): whatever the way does to items and acks, what comes
//! out is what went in, in order, once, within bounds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::super::{
    budget::{NodeBudget, PeerBudget},
    receiver::{Arrival, Due, Part, Receiver, Violation},
    sender::{BadAck, Outgoing, Sender, Tick, Time},
};
use crate::{
    mesh::session::Class,
    wire::limits::{INITIAL_WINDOW, UNACKED_ITEMS},
};

const RTT: Option<Duration> = Some(Duration::from_millis(20));
const WINDOW: u64 = 4096;

fn budget() -> PeerBudget {
    PeerBudget::new(1 << 20, NodeBudget::new(1 << 22))
}

fn item(seq: u64, data: Bytes) -> Outgoing {
    Outgoing {
        json: Bytes::copy_from_slice(&seq.to_be_bytes()),
        data,
        class: Class::Interactive,
    }
}

fn part(data: Bytes, last: bool) -> Part<(), ()> {
    Part {
        lead: None,
        data,
        last: last.then_some(()),
    }
}

/// What a random run may do next.
#[derive(Debug, Clone)]
enum Step {
    Push(u16),
    Send,
    /// Something on its way arrives: which one, and whether it stays there as a copy.
    Deliver(u16, bool),
    Lose(u16),
    Pop,
    Ack,
    DeliverAck(u16, bool),
    LoseAck(u16),
    Wait(u16),
    Rewind,
    LinkFull,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..1500_u16).prop_map(Step::Push),
        6 => Just(Step::Send),
        6 => any::<(u16, bool)>().prop_map(|(i, copy)| Step::Deliver(i, copy)),
        1 => any::<u16>().prop_map(Step::Lose),
        4 => Just(Step::Pop),
        2 => Just(Step::Ack),
        3 => any::<(u16, bool)>().prop_map(|(i, copy)| Step::DeliverAck(i, copy)),
        1 => any::<u16>().prop_map(Step::LoseAck),
        2 => (0..3000_u16).prop_map(Step::Wait),
        1 => Just(Step::Rewind),
        1 => Just(Step::LinkFull),
    ];
    proptest::collection::vec(step, 0..300)
}

/// A sender, a receiver, and everything on its way between them.
struct Run {
    sender: Sender,
    receiver: Receiver<(), ()>,
    now: Time,
    /// Everything pushed, as one text; number of items and whether it ended.
    pushed: Vec<u8>,
    popped: Vec<u8>,
    ends: usize,
    items: Vec<(u64, Bytes, bool)>,
    acks: Vec<(u64, u64)>,
    last_seq: Option<u64>,
}

impl Run {
    fn new() -> Self {
        let budget = budget();
        Self {
            sender: Sender::new(WINDOW, budget.account(), Arc::default()),
            receiver: Receiver::new(WINDOW, u64::MAX, Time::ZERO, budget.account()),
            now: Time::ZERO,
            pushed: Vec::new(),
            popped: Vec::new(),
            ends: 0,
            items: Vec::new(),
            acks: Vec::new(),
            last_seq: None,
        }
    }

    fn push(&mut self, len: usize, last: bool) -> bool {
        let fits = self
            .sender
            .allowance()
            .is_some_and(|room| room >= len as u64);
        if self.sender.closed() || !fits && !last {
            self.sender.starve(self.now);
            return false;
        }
        let from = self.pushed.len();
        let data: Bytes = (from..from + len)
            .map(|at| (at * 31 % 251) as u8)
            .collect::<Vec<u8>>()
            .into();
        let seq = self.sender.next_seq();
        if !self.sender.push(item(seq, data.clone()), last) {
            return false;
        }
        self.pushed.extend_from_slice(&data);
        if last {
            self.last_seq = Some(seq);
        }
        true
    }

    fn send(&mut self) {
        if let Some((seq, _, out)) = self.sender.take(self.now) {
            assert_eq!(&out.json[..], seq.to_be_bytes());
            self.items.push((seq, out.data, Some(seq) == self.last_seq));
        }
    }

    fn deliver(&mut self, at: usize, copy: bool) {
        if self.items.is_empty() {
            return;
        }
        let at = at % self.items.len();
        let (seq, data, last) = if copy {
            self.items[at].clone()
        } else {
            self.items.swap_remove(at)
        };
        self.receiver
            .arrive(seq, part(data, last), self.now)
            .expect("an honest sender breaks no rule");
    }

    fn pop(&mut self) {
        if let Some(part) = self.receiver.pop(self.now, RTT) {
            self.popped.extend_from_slice(&part.data);
            self.ends += usize::from(part.last.is_some());
        }
        assert_eq!(self.popped, self.pushed[..self.popped.len()]);
        assert!(self.ends <= 1);
    }

    fn ack(&mut self) {
        let ack = self.receiver.take_ack();
        self.acks.push(ack);
    }

    fn deliver_ack(&mut self, at: usize, copy: bool) {
        if self.acks.is_empty() {
            return;
        }
        let at = at % self.acks.len();
        let (next, max) = if copy {
            self.acks[at]
        } else {
            self.acks.swap_remove(at)
        };
        self.sender
            .on_ack(next, max, self.now, RTT)
            .expect("an honest receiver acks what was sent");
    }

    fn wait(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        if self.sender.tick(self.now, RTT) == Tick::Probe && !self.sender.closed() {
            self.push(0, false);
        }
        let _ = self.receiver.tick(self.now);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Push(len) => {
                self.push(usize::from(len), false);
            }
            Step::Send => self.send(),
            Step::Deliver(at, copy) => self.deliver(usize::from(at), copy),
            Step::Lose(at) => {
                if !self.items.is_empty() {
                    let at = usize::from(at) % self.items.len();
                    self.items.swap_remove(at);
                }
            }
            Step::Pop => self.pop(),
            Step::Ack => self.ack(),
            Step::DeliverAck(at, copy) => self.deliver_ack(usize::from(at), copy),
            Step::LoseAck(at) => {
                if !self.acks.is_empty() {
                    let at = usize::from(at) % self.acks.len();
                    self.acks.swap_remove(at);
                }
            }
            Step::Wait(millis) => self.wait(u64::from(millis)),
            Step::Rewind => self.sender.rewind(self.now),
            Step::LinkFull => {
                let taken: Vec<(u64, bool)> = std::iter::from_fn(|| self.sender.take(self.now))
                    .map(|(seq, again, _)| (seq, again))
                    .collect();
                for (seq, again) in taken.into_iter().rev() {
                    self.sender.put_back(seq, again);
                }
            }
        }
        assert!(self.pushed.len() - self.popped.len() <= 16 * WINDOW as usize);
    }

    /// From here on the way is honest: everything must come through.
    fn settle(&mut self) {
        while !self.push(0, true) {}
        for _ in 0..2000 {
            while let before = self.items.len()
                && {
                    self.send();
                    self.items.len() > before
                }
            {}
            while !self.items.is_empty() {
                self.deliver(0, false);
            }
            while self.receiver.has_ready() {
                self.pop();
            }
            if self.receiver.due() != Due::No {
                self.ack();
            }
            while !self.acks.is_empty() {
                self.deliver_ack(0, false);
            }
            if self.sender.done() {
                break;
            }
            self.wait(100);
        }
        assert!(self.sender.done(), "everything is acked");
        assert!(self.receiver.complete());
        assert_eq!(self.popped, self.pushed);
        assert_eq!(self.ends, 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_goes_in_comes_out_in_order_and_once(steps in steps()) {
        let mut run = Run::new();
        for step in &steps {
            run.step(step);
        }
        run.settle();
    }

    /// Nothing a hostile sender writes makes a receiver hold more than its bounds.
    #[test]
    fn a_receiver_is_bounded_whatever_arrives(
        items in proptest::collection::vec((0..6000_u64, 0..3000_usize, any::<bool>(), any::<bool>()), 0..300)
    ) {
        let node = NodeBudget::new(100_000);
        let budget = PeerBudget::new(50_000, node.clone());
        let mut receiver = Receiver::new(WINDOW, 20_000, Time::ZERO, budget.account());
        for (seq, len, last, pop) in items {
            let _ = receiver.arrive(seq, part(Bytes::from(vec![0; len]), last), Time::ZERO);
            if pop {
                let _ = receiver.pop(Time::ZERO, RTT);
            }
            // One last item without data is always taken.
            prop_assert!(node.held() <= 50_000 + 128);
            prop_assert!(receiver.in_order_bytes() <= 20_000);
        }
        receiver.clear();
        prop_assert_eq!(node.held(), 0);
    }

    /// Nor does any ack confuse a sender.
    #[test]
    fn a_sender_stands_any_ack(acks in proptest::collection::vec((0..20_u64, any::<u64>(), 0..5000_u64), 0..100)) {
        let budget = budget();
        let mut sender = Sender::new(WINDOW, budget.account(), Arc::default());
        for (i, (next, max, millis)) in acks.into_iter().enumerate() {
            let now = Duration::from_millis(millis) + Duration::from_secs(i as u64);
            if sender.allowance().is_some_and(|room| room > 10) {
                prop_assert!(sender.push(item(sender.next_seq(), Bytes::from_static(b"0123456789")), false));
            }
            let sent = sender.take(now).map(|(seq, ..)| seq);
            let _ = sender.on_ack(next, max, now, RTT);
            let _ = sender.tick(now, RTT);
            prop_assert!(sent.is_none_or(|seq| seq < sender.next_seq()));
        }
    }
}

#[test]
fn an_early_item_is_acked_at_once_and_sent_again_once_a_round_trip() {
    let mut run = Run::new();
    for _ in 0..4 {
        assert!(run.push(10, false));
        run.send();
    }
    run.now += Duration::from_millis(1);
    run.items.remove(0);
    run.deliver(0, false);
    assert_eq!(run.receiver.due(), Due::Now);
    run.ack();
    run.deliver_ack(0, false);
    let before = run.items.len();
    run.send();
    assert_eq!(run.items.len(), before + 1, "the missing one goes again");
    assert_eq!(run.items[before].0, 0);
    run.deliver(0, false);
    run.ack();
    run.deliver_ack(0, false);
    run.send();
    assert_eq!(
        run.items.len(),
        before,
        "not a second time within a round trip"
    );
}

#[test]
fn small_chunks_are_joined_while_nobody_takes_them() {
    let mut receiver: Receiver<(), ()> =
        Receiver::new(INITIAL_WINDOW, u64::MAX, Time::ZERO, budget().account());
    for seq in 0..3000 {
        let data = Bytes::copy_from_slice(b"0123456789");
        assert_eq!(
            receiver.arrive(seq, part(data, false), Time::ZERO),
            Ok(Arrival::Ready)
        );
    }
    let mut items = 0;
    let mut bytes = 0;
    while let Some(part) = receiver.pop(Time::ZERO, RTT) {
        items += 1;
        bytes += part.data.len();
    }
    assert_eq!((items, bytes), (2, 30_000));
}

#[test]
fn rules_of_the_last_item_hold() {
    let receiver = || -> Receiver<(), ()> {
        Receiver::new(INITIAL_WINDOW, 100, Time::ZERO, budget().account())
    };
    let bytes = |len| Bytes::from(vec![0; len]);
    let mut early = receiver();
    assert_eq!(
        early.arrive(2, part(bytes(1), false), Time::ZERO),
        Ok(Arrival::Early)
    );
    assert_eq!(
        early.arrive(1, part(bytes(1), true), Time::ZERO),
        Err(Violation::PastEnd)
    );
    let mut jump = receiver();
    assert_eq!(
        jump.arrive(UNACKED_ITEMS, part(bytes(0), false), Time::ZERO),
        Err(Violation::Jump)
    );
    let mut long = receiver();
    assert_eq!(
        long.arrive(0, part(bytes(101), false), Time::ZERO),
        Err(Violation::TooLong)
    );
    let mut sender = Sender::new(10, budget().account(), Arc::default());
    assert_eq!(sender.on_ack(1, 10, Time::ZERO, RTT), Err(BadAck));
}

//! A way that is slow and has long queues (T131): nothing is lost on it, and what is thought lost must
//! not fill it again and again.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use super::super::{
    budget::{NodeBudget, PeerBudget},
    congestion::Flight,
    sender::{Outgoing, Sender, Time},
};
use crate::mesh::session::Class;

/// What pings say of the way: they pass the queues.
const RTT: Option<Duration> = Some(Duration::from_millis(20));
const ITEM: usize = 32 * 1024;
const ITEMS: u64 = 100;
/// Bytes a second.
const RATE: u32 = 125_000;
const STEP: Duration = Duration::from_millis(10);
const ACK_EVERY: Duration = Duration::from_millis(100);

fn sender() -> Sender {
    let flight = Arc::new(Flight::default());
    flight.bind(true);
    let budget = PeerBudget::new(64 << 20, NodeBudget::new(64 << 20));
    let mut sender = Sender::new(u64::MAX, budget.account(), flight);
    for seq in 0..ITEMS {
        let item = Outgoing {
            json: Bytes::new(),
            data: vec![0; ITEM].into(),
            class: Class::Bulk,
        };
        assert!(sender.push(item, seq + 1 == ITEMS));
    }
    sender
}

/// Copies that left until all items were acked, over a way that stands still for a while at each of
/// these times, and after which it is said to have moved.
fn copies(stalls: &[(u64, Duration)]) -> u64 {
    let mut sender = sender();
    let (mut now, mut free) = (Time::ZERO, Time::ZERO);
    let mut wire: VecDeque<(Time, u64)> = VecDeque::new();
    let mut acks: VecDeque<(Time, u64)> = VecDeque::new();
    let (mut next, mut early) = (0, BTreeSet::new());
    let (mut news, mut acked_at, mut copies) = (false, Time::ZERO, 0);
    while !sender.done() {
        now += STEP;
        assert!(now < Duration::from_secs(600), "never done");
        for (second, time) in stalls {
            if now == Duration::from_secs(*second) {
                free += *time;
                wire.iter_mut().for_each(|(at, _)| *at += *time);
            }
            if now == Duration::from_secs(*second) + *time {
                sender.suspect(now, RTT);
            }
        }
        while wire.front().is_some_and(|(at, _)| *at <= now) {
            let (_, seq) = wire.pop_front().unwrap();
            if seq >= next {
                early.insert(seq);
            }
            while early.remove(&next) {
                next += 1;
            }
            news = true;
        }
        if news && now >= acked_at + ACK_EVERY {
            (news, acked_at) = (false, now);
            acks.push_back((now + RTT.unwrap() / 2, next));
        }
        while acks.front().is_some_and(|(at, _)| *at <= now) {
            let (_, next) = acks.pop_front().unwrap();
            sender.on_ack(next, u64::MAX, now, RTT).unwrap();
        }
        let _ = sender.tick(now, RTT);
        while let Some((seq, ..)) = sender.take(now) {
            copies += 1;
            free = free.max(now) + Duration::from_secs(1) * ITEM as u32 / RATE;
            wire.push_back((free, seq));
        }
    }
    copies
}

#[test]
fn nothing_goes_twice_over_a_way_that_is_only_slow() {
    assert!(copies(&[]) <= ITEMS + 2, "{}", copies(&[]));
}

#[test]
fn a_way_that_stood_still_is_not_filled_with_copies() {
    for stalls in [
        &[(4, Duration::from_millis(3500))][..],
        &[(3, Duration::from_secs(2)), (9, Duration::from_secs(5))],
        &[(6, Duration::from_secs(8))],
    ] {
        let copies = copies(stalls);
        assert!(copies * 10 <= ITEMS * 13, "{stalls:?}: {copies}");
    }
}

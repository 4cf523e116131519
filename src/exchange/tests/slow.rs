//! A slow way with long queues (T131), in virtual time: what is only late is not sent again and again, and
//! what is lost still comes.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use super::super::{
    budget::{NodeBudget, PeerBudget},
    congestion::Flight,
    sender::{Outgoing, Sender, Tick, Time},
};
use crate::{mesh::session::Class, wire::limits::FLOW_QUEUE_BYTES};

/// What pings say of the way: they pass the queues.
const RTT: Option<Duration> = Some(Duration::from_millis(20));
const STEP: Duration = Duration::from_millis(10);
const ACK_EVERY: Duration = Duration::from_millis(100);
/// 1 Mbit/s in bytes.
const SLOW: u64 = 125_000;
const SECOND: Duration = Duration::from_secs(1);

/// A relay's queue for one flow, its slow way out, and the other end.
struct Way {
    rate: u64,
    item_bytes: usize,
    items: u64,
    /// From which second to which the way out stands still: nothing is lost, and a hint says that it may be.
    stalls: &'static [(u64, u64)],
    /// The same for everything being lost, without a word.
    swallows: &'static [(u64, u64)],
    /// Every so manieth frame is lost without a word.
    loses: u64,
}

impl Default for Way {
    fn default() -> Self {
        Self {
            rate: SLOW,
            item_bytes: 32 * 1024,
            items: 100,
            stalls: &[],
            swallows: &[],
            loses: u64::MAX,
        }
    }
}

/// How it went.
#[derive(Debug)]
struct Went {
    /// Frames that left the sender, as a share of the items.
    ratio: f64,
    took: Duration,
    /// Longest queue before the slow way out, in time.
    queue: Duration,
}

fn holds(spans: &[(u64, u64)], now: Time) -> bool {
    let second = now.as_secs();
    spans
        .iter()
        .any(|(from, to)| (*from..*to).contains(&second))
}

impl Way {
    fn sender(&self) -> Sender {
        let flight = Arc::new(Flight::default());
        flight.bind(true);
        let budget = PeerBudget::new(1 << 28, NodeBudget::new(1 << 28));
        let mut sender = Sender::new(u64::MAX, budget.account(), flight);
        for seq in 0..self.items {
            let item = Outgoing {
                json: Bytes::new(),
                data: vec![0; self.item_bytes].into(),
                class: Class::Bulk,
            };
            assert!(sender.push(item, seq + 1 == self.items));
        }
        sender
    }

    fn carry(&self) -> Went {
        let mut sender = self.sender();
        let mut now = Time::ZERO;
        let (mut queue, mut sending, mut free) = (VecDeque::new(), None, Time::ZERO);
        let mut acks: VecDeque<(Time, u64)> = VecDeque::new();
        let (mut next, mut early) = (0, BTreeSet::new());
        let (mut news, mut acked_at, mut copies) = (false, Time::ZERO, 0_u64);
        let (mut hint, mut longest) = (None, 0);
        let per_item = Duration::from_micros(self.item_bytes as u64 * 1_000_000 / self.rate);
        while !sender.done() {
            now += STEP;
            assert!(now < 900 * SECOND, "never done");
            if hint.take_if(|at| *at <= now).is_some() {
                sender.suspect(now, RTT);
            }
            let stands = holds(self.stalls, now);
            if now.subsec_millis() == 0 && holds(self.stalls, now.saturating_sub(STEP)) && !stands {
                sender.suspect(now, RTT);
            }
            // The slow way out, and the other end.
            let mut now_early = 0;
            if !stands {
                loop {
                    if sending.is_none()
                        && let Some(seq) = queue.pop_front()
                    {
                        free = free.max(now.saturating_sub(STEP)) + per_item;
                        sending = Some((free, seq));
                    }
                    let Some((_, seq)) = sending.filter(|(at, _)| *at <= now) else {
                        break;
                    };
                    sending = None;
                    if seq > next {
                        early.insert(seq);
                        now_early += 1;
                    } else if seq == next {
                        next += 1;
                        while early.remove(&next) {
                            next += 1;
                        }
                    }
                    news = true;
                }
            } else if let Some((at, _)) = &mut sending {
                *at += STEP;
                free += STEP;
            }
            let batch = (news || !early.is_empty()) && now >= acked_at + ACK_EVERY;
            if batch || (now_early > 0 && early.len() <= 3) {
                (news, acked_at) = (false, now);
                acks.push_back((now + STEP, next));
            }
            while acks.front().is_some_and(|(at, _)| *at <= now) {
                let (_, next) = acks.pop_front().unwrap();
                sender.on_ack(next, u64::MAX, now, RTT).unwrap();
            }
            if now.subsec_millis().is_multiple_of(100) {
                assert_ne!(sender.tick(now, RTT), Tick::Lost, "at {now:?}");
            }
            while let Some((seq, ..)) = sender.take(now) {
                copies += 1;
                if holds(self.swallows, now) || copies.is_multiple_of(self.loses) {
                    continue;
                }
                if queue.len() * self.item_bytes >= FLOW_QUEUE_BYTES {
                    hint.get_or_insert(now + STEP * 2);
                } else {
                    queue.push_back(seq);
                }
            }
            longest = longest.max(queue.len());
        }
        Went {
            ratio: copies as f64 / self.items as f64,
            took: now,
            queue: per_item * longest as u32,
        }
    }

    /// Time that the slow way out needs for every item once.
    fn least(&self) -> Duration {
        Duration::from_secs_f64(self.items as f64 * self.item_bytes as f64 / self.rate as f64)
    }
}

#[test]
fn a_way_that_is_only_slow_carries_everything_once() {
    for rate in [SLOW / 8, SLOW / 4, SLOW, 10 * SLOW] {
        for item_bytes in [16 * 1024, 32 * 1024, 60 * 1024] {
            let way = Way {
                rate,
                item_bytes,
                ..Way::default()
            };
            let went = way.carry();
            let what = format!("{rate} bytes a second in {item_bytes}: {went:?}");
            assert!(went.ratio <= 1.1, "{what}");
            assert!(went.took <= way.least() * 5 / 4 + SECOND, "{what}");
        }
    }
}

#[test]
fn a_way_that_stood_still_is_not_filled_with_copies() {
    for stalls in [
        &[(4, 8)][..],
        &[(3, 5), (9, 14)],
        &[(6, 14)],
        &[(2, 4), (6, 8), (10, 12), (14, 16)],
    ] {
        let way = Way {
            stalls,
            ..Way::default()
        };
        let went = way.carry();
        assert!(went.ratio <= 1.3, "{stalls:?}: {went:?}");
    }
}

#[test]
fn what_was_swallowed_for_twenty_seconds_comes_soon_after() {
    for rate in [SLOW / 4, SLOW, 100 * SLOW] {
        for (items, item_bytes) in [(3000, 200), (100, 32 * 1024)] {
            let way = Way {
                rate,
                item_bytes,
                items,
                swallows: &[(1, 21)],
                ..Way::default()
            };
            let went = way.carry();
            let what = format!("{rate} bytes a second in {item_bytes}: {went:?}");
            assert!(went.took <= way.least() * 5 / 4 + 35 * SECOND, "{what}");
        }
    }
}

/// A short answer of which nothing was acked before the silence, and nothing follows.
#[test]
fn what_was_swallowed_from_the_start_comes_soon_after() {
    for (items, item_bytes) in [(150, 20), (8, 32 * 1024)] {
        let way = Way {
            item_bytes,
            items,
            swallows: &[(0, 20)],
            ..Way::default()
        };
        let went = way.carry();
        assert!(went.took <= way.least() + 29 * SECOND, "{items}: {went:?}");
    }
}

#[test]
fn a_lossy_way_costs_what_it_loses() {
    let way = Way {
        loses: 20,
        ..Way::default()
    };
    let went = way.carry();
    assert!(went.ratio <= 1.3, "{went:?}");
    assert!(went.took <= way.least() * 2, "{went:?}");
}

#[test]
fn the_queue_before_a_slow_way_stays_short() {
    let way = Way {
        rate: 4 * SLOW,
        items: 1000,
        ..Way::default()
    };
    let went = way.carry();
    // At first nobody knows that it is slow.
    assert!(went.queue <= 2 * SECOND, "{went:?}");
}

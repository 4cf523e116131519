//! Whether the other end of a link is still there (protocol 6.5). Pure: time comes in as an argument.
//!
//! A ping goes out every heartbeat; any record that arrives counts as life. An urgent ping goes out
//! when a request waits on a quiet link. A tick that comes much too late means that this process was
//! stopped: its own silence is not the neighbour's, so the timers begin anew.

use std::time::Duration;

use tokio::time::Instant;

use crate::wire::limits::{MISSED_HEARTBEATS, PAUSE, URGENT_PING_DEAD, URGENT_PING_SUSPECT};

/// Silence that makes a link quiet, so that a request on it asks for an urgent ping. Two seconds:
/// streams are never that silent, acks come every 100 ms.
const QUIET: Duration = Duration::from_secs(2);

/// What the link has to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing until the next tick.
    Wait,
    /// Send a ping with this number.
    Ping(u64),
    /// The neighbour is gone.
    Dead,
}

#[derive(Debug, Clone, Copy)]
struct Urgent {
    sent: Instant,
    // When no answer means death: 10 s, or 3 s after a pause of our own.
    dead_after: Duration,
}

/// State of one link.
#[derive(Debug)]
pub struct Liveness {
    heartbeat: Duration,
    heard: Instant,
    records: u64,
    next_ping: Instant,
    number: u64,
    outstanding: Option<(u64, Instant)>,
    urgent: Option<Urgent>,
    wanted: Option<Duration>,
    /// Whether the neighbour was in doubt at the last look.
    doubted: bool,
    expected: Instant,
    rtt: Option<Duration>,
}

impl Liveness {
    /// A link that has just come up; the first ping is due at once, it measures the round trip.
    #[must_use]
    pub fn new(heartbeat: Duration, now: Instant) -> Self {
        Self {
            heartbeat,
            heard: now,
            records: 0,
            next_ping: now,
            number: 0,
            outstanding: None,
            urgent: None,
            wanted: None,
            doubted: false,
            expected: now,
            rtt: None,
        }
    }

    /// A record has arrived. True when it ends a doubt: the caller must wake the task that ticks.
    pub fn heard(&mut self, now: Instant) -> bool {
        self.heard = now;
        self.records += 1;
        self.urgent = None;
        self.doubted
    }

    /// Records that have arrived.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// A pong has arrived; an answer to the last ping measures the round trip.
    pub fn pong(&mut self, number: u64, now: Instant) {
        if let Some((sent_number, sent)) = self.outstanding
            && sent_number == number
        {
            self.outstanding = None;
            let sample = now.saturating_duration_since(sent);
            self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
        }
    }

    /// A request is about to wait on this link: asks for an urgent ping when the link is quiet.
    /// True when the caller must wake the task that ticks.
    pub fn request_waits(&mut self, now: Instant) -> bool {
        let quiet = now.saturating_duration_since(self.heard) >= QUIET;
        quiet && self.urgent.is_none() && self.ask(URGENT_PING_DEAD)
    }

    /// Asks for an urgent ping, quiet or not.
    pub fn request_waits_now(&mut self) {
        if self.urgent.is_none() {
            self.ask(URGENT_PING_DEAD);
        }
    }

    /// This process was stopped: forgets all silence so far and asks for
    /// an urgent ping that must be answered within 3 s.
    pub fn restart(&mut self, now: Instant) {
        self.heard = now;
        self.urgent = None;
        self.outstanding = None;
        self.expected = now;
        self.ask(URGENT_PING_SUSPECT);
    }

    fn ask(&mut self, dead_after: Duration) -> bool {
        let first = self.wanted.is_none();
        self.wanted = Some(self.wanted.map_or(dead_after, |d| d.min(dead_after)));
        first
    }

    /// Silence so far.
    #[must_use]
    pub fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }

    /// Whether the neighbour may be gone.
    #[must_use]
    pub fn suspect(&self, now: Instant) -> bool {
        let urgent = self
            .urgent
            .is_some_and(|u| now.saturating_duration_since(u.sent) >= URGENT_PING_SUSPECT);
        urgent || self.silence(now) >= self.heartbeat * 3 / 2
    }

    /// Whether doubt has begun or ended since the last look.
    pub fn turned(&mut self, now: Instant) -> bool {
        let suspect = self.suspect(now);
        std::mem::replace(&mut self.doubted, suspect) != suspect
    }

    /// When doubt begins if nothing arrives; none while it lasts.
    fn doubt_at(&self, now: Instant) -> Option<Instant> {
        let mut at = self.heard + self.heartbeat * 3 / 2;
        if let Some(urgent) = self.urgent {
            at = at.min(urgent.sent + URGENT_PING_SUSPECT);
        }
        (at > now).then_some(at)
    }

    /// Smoothed round trip, once measured.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// What to do now. Call it again at [`Liveness::next_tick`], or sooner.
    pub fn tick(&mut self, now: Instant) -> Action {
        if now.saturating_duration_since(self.expected) > PAUSE {
            self.restart(now);
        }
        let silent = self.silence(now) >= self.heartbeat * MISSED_HEARTBEATS;
        let unanswered = self
            .urgent
            .is_some_and(|u| now.saturating_duration_since(u.sent) >= u.dead_after);
        if silent || unanswered {
            return Action::Dead;
        }
        if let Some(dead_after) = self.wanted.take() {
            self.urgent = Some(Urgent {
                sent: now,
                dead_after,
            });
        } else if now < self.next_ping {
            return Action::Wait;
        }
        self.next_ping = now + self.heartbeat;
        self.number += 1;
        self.outstanding = Some((self.number, now));
        Action::Ping(self.number)
    }

    /// When to tick next; notes it, so that a late tick is recognised.
    pub fn next_tick(&mut self, now: Instant) -> Instant {
        let mut next = self
            .next_ping
            .min(self.heard + self.heartbeat * MISSED_HEARTBEATS);
        if let Some(urgent) = self.urgent {
            next = next.min(urgent.sent + urgent.dead_after);
        }
        if let Some(doubt) = self.doubt_at(now) {
            next = next.min(doubt);
        }
        if self.wanted.is_some() {
            next = now;
        }
        self.expected = next.max(now);
        self.expected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HB: Duration = Duration::from_secs(15);

    fn seconds(n: f64) -> Duration {
        Duration::from_secs_f64(n)
    }

    /// Runs the clock to `end` as the link's task would.
    fn run(live: &mut Liveness, from: Instant, end: Instant) -> Option<Instant> {
        let mut now = from;
        loop {
            if live.tick(now) == Action::Dead {
                return Some(now);
            }
            let next = live.next_tick(now);
            if next > end {
                return None;
            }
            now = next.max(now + Duration::from_millis(1));
        }
    }

    #[test]
    fn silence_of_three_heartbeats_is_death() {
        let start = Instant::now();
        let mut live = Liveness::new(HB, start);
        assert!(!live.suspect(start + seconds(22.0)));
        assert!(live.suspect(start + seconds(22.6)));
        let dead = run(&mut live, start, start + seconds(100.0)).unwrap();
        assert_eq!(dead, start + HB * 3);
    }

    #[test]
    fn pongs_measure_and_keep_alive() {
        let start = Instant::now();
        let mut live = Liveness::new(HB, start);
        let mut now = start;
        for _ in 0..20 {
            let Action::Ping(n) = live.tick(now) else {
                panic!("a ping is due")
            };
            live.heard(now + seconds(0.04));
            live.pong(n, now + seconds(0.04));
            live.pong(n, now + seconds(5.0));
            now = live.next_tick(now + seconds(0.04));
        }
        assert_eq!(live.rtt(), Some(seconds(0.04)));
        assert_eq!(now, start + HB * 20);
    }

    #[test]
    fn waiting_request_on_a_quiet_link_finds_death_in_ten_seconds() {
        let start = Instant::now();
        let mut live = Liveness::new(HB, start);
        assert_eq!(run(&mut live, start, start + seconds(4.0)), None);
        let asked = start + seconds(5.0);
        live.next_tick(asked);
        assert!(live.request_waits(asked));
        assert!(!live.request_waits(asked), "one ping is enough");
        let Action::Ping(_) = live.tick(asked) else {
            panic!("the urgent ping is due")
        };
        assert!(live.suspect(asked + seconds(3.0)));
        let dead = run(&mut live, asked, asked + seconds(60.0)).unwrap();
        assert_eq!(dead, asked + seconds(10.0));
    }

    #[test]
    fn doubt_is_noticed_when_it_begins_and_when_it_ends() {
        let start = Instant::now();
        let mut live = Liveness::new(HB, start);
        live.tick(start);
        assert!(!live.turned(start));
        let asked = start + seconds(5.0);
        live.next_tick(asked);
        assert!(live.request_waits(asked));
        live.tick(asked);
        let doubt = live.next_tick(asked);
        assert_eq!(doubt, asked + seconds(3.0), "there is a look just then");
        assert_eq!(live.tick(doubt), Action::Wait);
        assert!(live.turned(doubt));
        assert!(!live.turned(doubt), "told once");
        let answered = doubt + seconds(1.0);
        assert!(live.heard(answered), "somebody has to look");
        assert!(live.turned(answered));
        assert!(!live.heard(answered));
    }

    #[test]
    fn busy_link_needs_no_urgent_ping() {
        let start = Instant::now();
        let mut live = Liveness::new(HB, start);
        live.heard(start + seconds(9.0));
        assert!(!live.request_waits(start + seconds(10.0)));
    }

    #[test]
    fn our_own_pause_kills_nobody() {
        let start = Instant::now();
        let mut live = Liveness::new(HB, start);
        live.tick(start);
        let planned = live.next_tick(start);
        let woken = planned + seconds(60.0);
        assert!(
            matches!(live.tick(woken), Action::Ping(_)),
            "T77: asks instead"
        );
        assert!(!live.suspect(woken));
        live.heard(woken + seconds(0.1));
        assert_eq!(
            run(&mut live, woken + seconds(0.1), woken + seconds(20.0)),
            None
        );
    }

    #[test]
    fn unanswered_ping_after_a_pause_is_death_in_three_seconds() {
        let start = Instant::now();
        let mut live = Liveness::new(HB, start);
        live.tick(start);
        let woken = live.next_tick(start) + seconds(60.0);
        let dead = run(&mut live, woken, woken + seconds(60.0)).unwrap();
        assert_eq!(dead, woken + seconds(3.0));
    }
}

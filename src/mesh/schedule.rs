//! What a link sends next (protocol 5.5). Pure: no clock, no tasks.
//!
//! Control frames of this node go first; the rest takes turns by deficit round robin over lanes. A
//! lane is one flow in one class. Control frames that are passed on for others have lanes too: in the
//! queue that goes first they could hold up this node's own, and its overflow ends the link.
//! Interactive lanes get four times the bytes of bulk lanes. A frame that is taken out is sent;
//! nothing here drops one.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::BytesMut;

use crate::wire::{
    limits::{CONTROL_QUEUE_FRAMES, FLOW_QUEUE_BYTES, LINK_QUEUE_BYTES, NODE_QUEUE_BYTES},
    record::Class,
};

/// Bytes a bulk lane may send in its turn. Half the default bulk chunk: several lanes then share a
/// batch, and a full chunk waits for two turns only.
const QUANTUM: usize = 16 * 1024;
/// How much more an interactive lane gets.
const INTERACTIVE_WEIGHT: usize = 4;

/// Why a frame was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The lane or the link is full; wait for room.
    Full,
    /// The control queue is full: the other side takes nothing any more, so the link must end.
    ControlOverflow,
}

#[derive(Debug, Default)]
struct Lane {
    frames: VecDeque<BytesMut>,
    bytes: usize,
    deficit: usize,
}

/// The queues of one link; `F` names a flow.
#[derive(Debug)]
pub struct Schedule<F> {
    control: VecDeque<BytesMut>,
    lanes: HashMap<(F, Class), Lane>,
    // Lanes that have frames, in turn; each once.
    turns: VecDeque<(F, Class)>,
    bytes: usize,
    /// Bytes that wait on all links of the node.
    of_node: Arc<AtomicUsize>,
}

impl<F: Copy + Eq + Hash> Default for Schedule<F> {
    fn default() -> Self {
        Self::counted(Arc::default())
    }
}

impl<F> Drop for Schedule<F> {
    fn drop(&mut self) {
        self.of_node.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl<F: Copy + Eq + Hash> Schedule<F> {
    /// Empty queues that count what waits in `of_node` too, with those of other links.
    #[must_use]
    pub fn counted(of_node: Arc<AtomicUsize>) -> Self {
        Self {
            control: VecDeque::new(),
            lanes: HashMap::new(),
            turns: VecDeque::new(),
            bytes: 0,
            of_node,
        }
    }

    /// Queues one frame of `flow`. A frame larger than what is left of a lane is still taken while
    /// the lane is below its limit, so that the limit is never a deadlock.
    ///
    /// # Errors
    /// [`Refused`]; the frame is lost then, so callers ask [`Schedule::room`] before they build it.
    pub fn push(&mut self, flow: F, class: Class, frame: BytesMut) -> Result<(), Refused> {
        if class == Class::Control {
            if self.control.len() >= CONTROL_QUEUE_FRAMES {
                return Err(Refused::ControlOverflow);
            }
            self.control.push_back(frame);
            return Ok(());
        }
        self.push_relayed(flow, class, frame)
    }

    /// Queues one frame that is passed on for others: whatever its class, in a lane of its flow.
    ///
    /// # Errors
    /// [`Refused::Full`]; the frame is lost then.
    pub fn push_relayed(&mut self, flow: F, class: Class, frame: BytesMut) -> Result<(), Refused> {
        if !self.lane_room(flow, class) {
            return Err(Refused::Full);
        }
        let lane = self.lanes.entry((flow, class)).or_default();
        if lane.frames.is_empty() {
            self.turns.push_back((flow, class));
        }
        lane.bytes += frame.len();
        self.bytes += frame.len();
        self.of_node.fetch_add(frame.len(), Ordering::Relaxed);
        lane.frames.push_back(frame);
        Ok(())
    }

    /// Whether a frame of `flow` would be taken.
    #[must_use]
    pub fn room(&self, flow: F, class: Class) -> bool {
        class == Class::Control || self.lane_room(flow, class)
    }

    /// Whether a frame that is passed on for others would be taken.
    #[must_use]
    pub fn lane_room(&self, flow: F, class: Class) -> bool {
        let used = self.lanes.get(&(flow, class)).map_or(0, |lane| lane.bytes);
        used < FLOW_QUEUE_BYTES
            && self.bytes < LINK_QUEUE_BYTES
            && self.of_node.load(Ordering::Relaxed) < NODE_QUEUE_BYTES
    }

    /// How many more control frames of this node fit.
    #[must_use]
    pub fn control_room(&self) -> usize {
        CONTROL_QUEUE_FRAMES - self.control.len().min(CONTROL_QUEUE_FRAMES)
    }

    /// Takes the next frame if it has at most `limit` bytes.
    pub fn pop(&mut self, limit: usize) -> Option<BytesMut> {
        if let Some(frame) = self.control.front() {
            return (frame.len() <= limit).then(|| self.control.pop_front())?;
        }
        loop {
            let turn = *self.turns.front()?;
            let lane = self.lanes.get_mut(&turn)?;
            let next = lane.frames.front()?.len();
            if lane.deficit < next {
                let weight = match turn.1 {
                    Class::Control | Class::Interactive => INTERACTIVE_WEIGHT,
                    Class::Bulk => 1,
                };
                lane.deficit += QUANTUM * weight;
                self.turns.rotate_left(1);
                continue;
            }
            if next > limit {
                return None;
            }
            let frame = lane.frames.pop_front()?;
            lane.deficit -= next;
            lane.bytes -= next;
            self.bytes -= next;
            self.of_node.fetch_sub(next, Ordering::Relaxed);
            if lane.frames.is_empty() {
                // An idle lane keeps no credit, else it could burst later.
                self.lanes.remove(&turn);
                self.turns.pop_front();
            }
            return Some(frame);
        }
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.control.is_empty() && self.turns.is_empty()
    }

    /// Bytes that wait outside the control queue.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        *self = Self::counted(self.of_node.clone());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANY: usize = usize::MAX;

    fn frame(mark: u8, bytes: usize) -> BytesMut {
        BytesMut::from(&vec![mark; bytes][..])
    }

    #[test]
    fn control_overtakes_everything() {
        let mut schedule = Schedule::default();
        schedule.push(0, Class::Bulk, frame(2, 100)).unwrap();
        schedule.push(0, Class::Interactive, frame(1, 100)).unwrap();
        schedule.push(0, Class::Control, frame(0, 100)).unwrap();
        assert_eq!(schedule.pop(ANY).unwrap()[0], 0);
    }

    #[test]
    fn interactive_gets_four_times_the_bytes_of_bulk() {
        let mut schedule = Schedule::default();
        for _ in 0..120 {
            schedule
                .push(0, Class::Interactive, frame(1, 4096))
                .unwrap();
            schedule.push(0, Class::Bulk, frame(2, 4096)).unwrap();
        }
        let mut sent = [0; 3];
        for _ in 0..100 {
            sent[usize::from(schedule.pop(ANY).unwrap()[0])] += 1;
        }
        assert_eq!((sent[1], sent[2]), (80, 20));
    }

    #[test]
    fn flows_share_alike_whatever_their_frame_size() {
        let mut schedule = Schedule::default();
        for _ in 0..8 {
            schedule.push('a', Class::Bulk, frame(1, 60_000)).unwrap();
        }
        for _ in 0..480 {
            schedule.push('b', Class::Bulk, frame(2, 1000)).unwrap();
        }
        let mut bytes = [0; 3];
        while bytes[1] + bytes[2] < 480_000 {
            let frame = schedule.pop(ANY).unwrap();
            bytes[usize::from(frame[0])] += frame.len();
        }
        assert!(bytes[1].abs_diff(bytes[2]) <= 2 * 60_000, "{bytes:?}");
    }

    #[test]
    fn a_full_lane_refuses_and_others_go_on() {
        let mut schedule = Schedule::default();
        while schedule.push(0, Class::Bulk, frame(2, 60_000)).is_ok() {}
        assert!(schedule.bytes() >= FLOW_QUEUE_BYTES);
        assert!(schedule.bytes() < FLOW_QUEUE_BYTES + 60_000);
        assert!(!schedule.room(0, Class::Bulk));
        assert!(schedule.push(0, Class::Interactive, frame(1, 10)).is_ok());
        for flow in 1..100 {
            while schedule.push(flow, Class::Bulk, frame(2, 60_000)).is_ok() {}
        }
        assert!(schedule.bytes() < LINK_QUEUE_BYTES + 60_000);
    }

    #[test]
    fn control_overflow_is_told_apart() {
        let mut schedule = Schedule::default();
        for _ in 0..CONTROL_QUEUE_FRAMES {
            schedule.push(0, Class::Control, frame(0, 10)).unwrap();
        }
        assert_eq!(
            schedule.push(0, Class::Control, frame(0, 10)),
            Err(Refused::ControlOverflow)
        );
    }

    #[test]
    fn relayed_control_frames_never_hold_up_our_own() {
        let mut schedule = Schedule::default();
        while schedule
            .push_relayed(1, Class::Control, frame(1, 1000))
            .is_ok()
        {}
        assert!(schedule.bytes() < FLOW_QUEUE_BYTES + 1000);
        schedule.push(0, Class::Control, frame(0, 10)).unwrap();
        assert_eq!(schedule.pop(ANY).unwrap()[0], 0);
        assert_eq!(schedule.control_room(), CONTROL_QUEUE_FRAMES);
        assert_eq!(schedule.pop(ANY).unwrap()[0], 1);
    }

    proptest! {
        #[test]
        fn every_frame_leaves_once_and_lanes_keep_order(
            pushes in proptest::collection::vec((0u8..3, 0u8..3, 1usize..5000), 0..200),
        ) {
            let mut schedule = Schedule::default();
            let mut expected: HashMap<(u8, u8), Vec<usize>> = HashMap::new();
            for (flow, class, bytes) in pushes {
                let kind = [Class::Control, Class::Interactive, Class::Bulk][usize::from(class)];
                // Control frames of all flows share one queue.
                let flow = if class == 0 { 0 } else { flow };
                let mut frame = frame(flow, bytes.max(2));
                frame[1] = class;
                if schedule.push(flow, kind, frame).is_ok() {
                    expected.entry((flow, class)).or_default().push(bytes.max(2));
                }
            }
            let mut got: HashMap<(u8, u8), Vec<usize>> = HashMap::new();
            while let Some(frame) = schedule.pop(ANY) {
                got.entry((frame[0], frame[1])).or_default().push(frame.len());
            }
            prop_assert_eq!(got, expected);
            prop_assert!(schedule.is_empty());
            prop_assert_eq!(schedule.bytes(), 0);
        }
    }
}

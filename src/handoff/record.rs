//! What is known of one handoff: its text so far, the tools it used, how it ended. Written by who runs
//! it, read by any number of followers, each at its own place, so that one who lost its link goes on
//! where it was.
//!
//! Bounded: text and tools beyond their limits are left out of the progress; the result at the end is
//! whole up to its own limit.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::wire::{
    code::{Code, Failure, Stage},
    limits::{HANDOFF_TEXT_BYTES, HANDOFF_TOOL_EVENTS},
};

/// A last line that begins so asks the handing agent something (protocol 7.6).
pub const INPUT_REQUIRED: &str = "INPUT_REQUIRED:";

/// How a handoff ended (contract of the control API).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The agent answered.
    Completed,
    /// It could not, or ran out of time.
    Failed,
    /// The asking side gave up.
    Cancelled,
    /// The agent asks back; the same session takes the answer.
    InputRequired,
    /// It provably never began.
    NotDispatched,
    /// It cannot be learned what became of it.
    OutcomeUnknown,
}

impl Outcome {
    /// Its text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::Failed => "failed",
            Outcome::Cancelled => "cancelled",
            Outcome::InputRequired => "input_required",
            Outcome::NotDispatched => "not_dispatched",
            Outcome::OutcomeUnknown => "outcome_unknown",
        }
    }

    /// Whether the agent answered, be it with a question.
    #[must_use]
    pub const fn success(self) -> bool {
        matches!(self, Outcome::Completed | Outcome::InputRequired)
    }
}

/// The end of a handoff.
#[derive(Debug, Clone)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// The agent's answer, or its question; what there was of it when it failed.
    pub result: String,
    /// Why it is no success.
    pub failure: Option<Failure>,
}

impl Ended {
    /// The agent answered with `text`. A last line that begins with [`INPUT_REQUIRED`] is a question.
    #[must_use]
    pub fn answered(text: &str) -> Self {
        let text = text.trim_end();
        let (before, last) = text.rsplit_once('\n').unwrap_or(("", text));
        let question = last
            .trim_start_matches(['*', '`', ' '])
            .strip_prefix(INPUT_REQUIRED);
        let (outcome, result) = match question {
            Some(question) => {
                let question = question.trim_start_matches(['*', '`', ' ']);
                let whole = format!("{before}\n{question}");
                (Outcome::InputRequired, whole.trim().to_owned())
            }
            None => (Outcome::Completed, text.to_owned()),
        };
        Self {
            outcome,
            result,
            failure: None,
        }
    }

    /// It failed; the outcome follows from the code and from whether it had begun.
    #[must_use]
    pub fn failed(failure: Failure) -> Self {
        let outcome = match (failure.code, failure.stage) {
            (Code::Cancelled, _) => Outcome::Cancelled,
            (_, Stage::NotStarted) => Outcome::NotDispatched,
            (Code::OutcomeUnknown, Stage::Started) => Outcome::OutcomeUnknown,
            (_, Stage::Started) => Outcome::Failed,
        };
        Self {
            outcome,
            result: String::new(),
            failure: Some(failure),
        }
    }
}

/// A tool the agent uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolUse {
    /// The tool.
    pub name: String,
    /// `start` or `end`.
    pub phase: Phase,
    /// Whether it failed, once it has ended.
    #[serde(default)]
    pub failed: bool,
}

/// Where a tool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It begins.
    Start,
    /// It has ended.
    End,
}

/// Who runs a handoff.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The node.
    pub node: String,
    /// Its agent.
    pub agent: String,
    /// Name under which the same asker continues this session.
    pub session: String,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// It has begun.
    Started(Place),
    /// Further text.
    Delta(String),
    /// A tool begins or has ended.
    Tool(ToolUse),
    /// The end; nothing follows.
    Ended(Arc<Ended>),
}

/// How far one follower has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor {
    started: bool,
    /// Bytes of the text it has.
    pub text: usize,
    /// Tool events it has.
    pub tools: usize,
}

impl Cursor {
    /// A follower that has so much already and knows where the handoff runs.
    #[must_use]
    pub const fn at(text: usize, tools: usize) -> Self {
        Self {
            started: true,
            text,
            tools,
        }
    }
}

#[derive(Debug)]
struct State {
    place: Option<Place>,
    text: String,
    /// Tool events with the length of the text before each.
    tools: Vec<(usize, ToolUse)>,
    ended: Option<(Instant, Arc<Ended>)>,
    /// Last sign of life.
    heard: Instant,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: watch::Sender<()>,
    stop: CancellationToken,
}

/// The record of one handoff; cheap to clone.
#[derive(Debug, Clone)]
pub struct Record(Arc<Inner>);

impl Default for Record {
    fn default() -> Self {
        Self(Arc::new(Inner {
            state: Mutex::new(State {
                place: None,
                text: String::new(),
                tools: Vec::new(),
                ended: None,
                heard: Instant::now(),
            }),
            changed: watch::Sender::new(()),
            stop: CancellationToken::new(),
        }))
    }
}

impl Record {
    /// An empty record.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what has not ended, and wakes the followers.
    fn change(&self, change: impl FnOnce(&mut State)) {
        {
            let mut state = self.lock();
            if state.ended.is_some() {
                return;
            }
            state.heard = Instant::now();
            change(&mut state);
        }
        self.0.changed.send_replace(());
    }

    /// It has begun.
    pub fn started(&self, place: Place) {
        self.change(|state| {
            state.place.get_or_insert(place);
        });
    }

    /// Further text of the agent.
    pub fn delta(&self, text: &str) {
        self.change(|state| {
            let room = HANDOFF_TEXT_BYTES.saturating_sub(state.text.len());
            state
                .text
                .push_str(&text[..text.floor_char_boundary(room.min(text.len()))]);
        });
    }

    /// A tool begins or has ended.
    pub fn tool(&self, tool: ToolUse) {
        self.change(|state| {
            if state.tools.len() < HANDOFF_TOOL_EVENTS {
                state.tools.push((state.text.len(), tool));
            }
        });
    }

    /// The one end. What comes later changes nothing.
    pub fn end(&self, ended: Ended) {
        self.change(|state| state.ended = Some((Instant::now(), Arc::new(ended))));
    }

    /// Asks who runs it to stop.
    pub fn cancel(&self) {
        self.0.stop.cancel();
    }

    /// Resolves once [`Record::cancel`] was called.
    pub async fn cancelled(&self) {
        self.0.stop.cancelled().await;
    }

    /// Where it runs, once it has begun.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        self.lock().place.clone()
    }

    /// Its text so far.
    #[must_use]
    pub fn text(&self) -> String {
        self.lock().text.clone()
    }

    /// How far the record itself has come: what a follower has who has everything.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        let state = self.lock();
        Cursor {
            started: state.place.is_some(),
            text: state.text.len(),
            tools: state.tools.len(),
        }
    }

    /// Its end, if it has ended.
    #[must_use]
    pub fn ended(&self) -> Option<Arc<Ended>> {
        self.lock().ended.as_ref().map(|(_, ended)| ended.clone())
    }

    /// How long ago it ended; none while it runs.
    #[must_use]
    pub fn ended_for(&self) -> Option<Duration> {
        self.lock().ended.as_ref().map(|(at, _)| at.elapsed())
    }

    /// Bytes it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let state = self.lock();
        let result = state.ended.as_ref().map_or(0, |(_, e)| e.result.len());
        state.text.len() + result + state.tools.len() * size_of::<(usize, ToolUse)>()
    }

    /// Resolves when nothing was heard for `idle`.
    pub async fn silent(&self, idle: Duration) {
        loop {
            let heard = self.lock().heard;
            if heard.elapsed() >= idle {
                return;
            }
            tokio::time::sleep_until(heard + idle).await;
        }
    }

    /// Resolves with the end.
    pub async fn finished(&self) -> Arc<Ended> {
        let mut changed = self.0.changed.subscribe();
        loop {
            if let Some(ended) = self.ended() {
                return ended;
            }
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }

    /// What comes next for a follower at `cursor`. Safe to drop and call again.
    pub async fn next(&self, cursor: &mut Cursor) -> Event {
        let mut changed = self.0.changed.subscribe();
        loop {
            if let Some(event) = self.poll(cursor) {
                return event;
            }
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }

    /// The same without waiting.
    #[must_use]
    pub fn poll(&self, cursor: &mut Cursor) -> Option<Event> {
        let state = self.lock();
        if !cursor.started
            && let Some(place) = &state.place
        {
            cursor.started = true;
            return Some(Event::Started(place.clone()));
        }
        let tool = state.tools.get(cursor.tools);
        if let Some((at, tool)) = tool
            && *at <= cursor.text
        {
            cursor.tools += 1;
            return Some(Event::Tool(tool.clone()));
        }
        let until = tool.map_or(state.text.len(), |(at, _)| *at);
        if let Some(text) = state.text.get(cursor.text..until)
            && !text.is_empty()
        {
            cursor.text = until;
            return Some(Event::Delta(text.to_owned()));
        }
        let (_, ended) = state.ended.as_ref()?;
        Some(Event::Ended(ended.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            node: "office-01".into(),
            agent: "main".into(),
            session: "s".into(),
        }
    }

    fn tool(name: &str) -> ToolUse {
        ToolUse {
            name: name.into(),
            phase: Phase::Start,
            failed: false,
        }
    }

    fn drain(record: &Record, cursor: &mut Cursor) -> String {
        let mut seen = String::new();
        while let Some(event) = record.poll(cursor) {
            match event {
                Event::Started(_) => seen.push('['),
                Event::Delta(text) => seen.push_str(&text),
                Event::Tool(tool) => seen.push_str(&format!("<{}>", tool.name)),
                Event::Ended(_) => {
                    seen.push(']');
                    break;
                }
            }
        }
        seen
    }

    #[test]
    fn every_follower_sees_the_same_order_from_where_it_is() {
        let record = Record::new();
        let mut early = Cursor::default();
        record.started(place());
        record.delta("one ");
        record.tool(tool("read"));
        assert_eq!(drain(&record, &mut early), "[one <read>");
        let held = early;
        record.delta("two");
        record.delta(" three");
        record.tool(tool("exec"));
        record.end(Ended::answered("done"));
        record.delta("late");
        assert_eq!(drain(&record, &mut early), "two three<exec>]");
        assert_eq!(
            drain(&record, &mut Cursor::default()),
            "[one <read>two three<exec>]"
        );
        let mut resumed = Cursor::at(held.text, held.tools);
        assert_eq!(drain(&record, &mut resumed), "two three<exec>]");
    }

    #[test]
    fn a_cursor_that_fits_no_text_never_panics() {
        let record = Record::new();
        record.started(place());
        record.delta("äöü");
        for text in 0..20 {
            drain(&record, &mut Cursor::at(text, 7));
        }
    }

    #[test]
    fn what_is_too_long_is_left_out_of_the_progress() {
        let record = Record::new();
        let piece = "ä".repeat(1 << 20);
        for _ in 0..4 {
            record.delta(&piece);
        }
        let held = record.text().len();
        assert!(held <= HANDOFF_TEXT_BYTES && held > HANDOFF_TEXT_BYTES - 4);
        for _ in 0..=HANDOFF_TOOL_EVENTS {
            record.tool(tool("read"));
        }
        assert_eq!(record.cursor().tools, HANDOFF_TOOL_EVENTS);
    }

    #[test]
    fn a_last_line_with_the_mark_is_a_question() {
        let plain = Ended::answered("all done\n");
        assert_eq!(
            (plain.outcome, &*plain.result),
            (Outcome::Completed, "all done")
        );
        let asked = Ended::answered("I looked.\n**INPUT_REQUIRED:** which file?\n\n");
        assert_eq!(asked.outcome, Outcome::InputRequired);
        assert_eq!(asked.result, "I looked.\nwhich file?");
        let quoted = Ended::answered("INPUT_REQUIRED: is a mark\nnothing more");
        assert_eq!(quoted.outcome, Outcome::Completed);
    }

    #[test]
    fn outcomes_follow_from_code_and_stage() {
        for (failure, outcome) in [
            (
                Failure::not_started(Code::NoRoute, ""),
                Outcome::NotDispatched,
            ),
            (
                Failure::not_started(Code::Cancelled, ""),
                Outcome::Cancelled,
            ),
            (
                Failure::started(Code::OutcomeUnknown, ""),
                Outcome::OutcomeUnknown,
            ),
            (Failure::started(Code::Timeout, ""), Outcome::Failed),
        ] {
            let ended = Ended::failed(failure);
            assert_eq!(ended.outcome, outcome);
            assert!(!ended.outcome.success());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_piece_restarts_the_silence() {
        let record = Record::new();
        let begun = Instant::now();
        let second = Duration::from_secs(1);
        let speak = async {
            for _ in 0..3 {
                tokio::time::sleep(second * 2).await;
                record.delta("x");
            }
        };
        tokio::join!(record.silent(second * 3), speak);
        assert_eq!(begun.elapsed(), second * 9);
    }
}

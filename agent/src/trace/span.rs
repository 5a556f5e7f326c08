//! A part of a trace.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::{Inner, Onward, SpanContext, SpanId, TraceId};

/// Characters of a text in a span.
pub const MAX_TEXT: usize = 512;

/// On which side of a call a span is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// On none: work of our own.
    Internal,
    /// On the side that asks.
    Client,
}

/// The value of an attribute.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Value {
    /// A whole number.
    Int(i64),
    /// A text, cut at [`MAX_TEXT`] characters.
    Text(Cow<'static, str>),
}

/// A span that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Itself.
    pub context: SpanContext,
    /// The span above it, and whether that is another program's.
    pub parent: Option<(SpanId, bool)>,
    /// What it is about.
    pub name: &'static str,
    /// On which side it is.
    pub kind: Kind,
    /// When it began.
    pub start: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// What is told of it.
    pub attributes: Vec<(&'static str, Value)>,
    /// Where it failed, why.
    pub error: Option<String>,
    /// Another span that it has to do with, although it is not below it.
    pub link: Option<SpanContext>,
}

/// A part of a trace while it lasts; it ends when it is dropped. One that is not recorded
/// ([`Span::none`]) holds nothing, and all that is done with it does nothing.
#[derive(Debug, Default)]
pub struct Span(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    tracer: Arc<Inner>,
    clock: Clock,
    began: Instant,
    ended: Option<Instant>,
    finished: Finished,
}

/// What the time was, by both clocks. It is read once for all spans below the first of ours, so that
/// they stand to each other as they were, also when somebody sets the clock.
#[derive(Clone, Copy, Debug)]
struct Clock {
    wall: SystemTime,
    steady: Instant,
}

impl Clock {
    fn now() -> Self {
        Self {
            wall: SystemTime::now(),
            steady: Instant::now(),
        }
    }

    fn wall(&self, at: Instant) -> SystemTime {
        match at.checked_duration_since(self.steady) {
            Some(after) => self.wall + after,
            None => {
                let before = self.steady.duration_since(at);
                self.wall.checked_sub(before).unwrap_or(self.wall)
            }
        }
    }
}

impl Span {
    /// One that is not recorded.
    pub const fn none() -> Self {
        Self(None)
    }

    /// One that is, below `parent` of another program.
    pub(super) fn begin(
        tracer: &Arc<Inner>,
        trace: TraceId,
        parent: Option<SpanContext>,
        name: &'static str,
        kind: Kind,
        began: Instant,
    ) -> Self {
        let Some(id) = SpanId::random() else {
            return Self::none();
        };
        let clock = Clock::now();
        let context = SpanContext::new(trace, id, parent.as_ref());
        let parent = parent.map(|parent| (parent.span, true));
        Self::open(tracer, clock, context, parent, (name, kind), began)
    }

    fn open(
        tracer: &Arc<Inner>,
        clock: Clock,
        context: SpanContext,
        parent: Option<(SpanId, bool)>,
        (name, kind): (&'static str, Kind),
        began: Instant,
    ) -> Self {
        Self(Some(Box::new(Open {
            tracer: Arc::clone(tracer),
            clock,
            began,
            ended: None,
            finished: Finished {
                context,
                parent,
                name,
                kind,
                start: clock.wall(began),
                took: Duration::ZERO,
                attributes: Vec::new(),
                error: None,
                link: None,
            },
        })))
    }

    /// Whether it is recorded.
    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// What others refer to it by.
    pub fn context(&self) -> Option<SpanContext> {
        self.0.as_ref().map(|open| open.finished.context)
    }

    /// One below it that begins now.
    #[must_use]
    pub fn child(&self, name: &'static str, kind: Kind) -> Self {
        match &self.0 {
            Some(_) => self.child_from(name, kind, Instant::now()),
            None => Self::none(),
        }
    }

    /// One below it that began then.
    #[must_use]
    pub fn child_from(&self, name: &'static str, kind: Kind, began: Instant) -> Self {
        let Some(open) = &self.0 else {
            return Self::none();
        };
        let above = open.finished.context;
        let Some(id) = SpanId::random() else {
            return Self::none();
        };
        let context = SpanContext::new(above.trace, id, Some(&above));
        let parent = Some((above.span, false));
        Self::open(
            &open.tracer,
            open.clock,
            context,
            parent,
            (name, kind),
            began,
        )
    }

    /// One below it that is over: it began then and took that long.
    #[must_use]
    pub fn past(&self, name: &'static str, began: Instant, took: Duration) -> Self {
        let mut span = self.child_from(name, Kind::Internal, began);
        if let Some(open) = &mut span.0 {
            open.ended = Some(began + took);
        }
        span
    }

    /// Has `work` done in a span below it.
    pub async fn around<F: Future>(&self, name: &'static str, work: F) -> F::Output {
        let _span = self.child(name, Kind::Internal);
        work.await
    }

    /// Has `work` done in a span below it, which tells why if it fails; `class` is one of few.
    ///
    /// # Errors
    /// As `work`.
    pub async fn attempt<T, E, F>(
        &self,
        name: &'static str,
        work: F,
        class: impl FnOnce(&E) -> &'static str,
    ) -> Result<T, E>
    where
        E: Display,
        F: Future<Output = Result<T, E>>,
    {
        let mut span = self.child(name, Kind::Internal);
        let result = work.await;
        if let Err(error) = &result {
            span.failed(class(error), error);
        }
        result
    }

    /// Says more of it.
    pub fn number(&mut self, key: &'static str, value: impl Into<Option<i64>>) {
        if let (Some(open), Some(value)) = (&mut self.0, value.into()) {
            open.set(key, Value::Int(value));
        }
    }

    /// Says more of it; `value` is asked for its text only where it is recorded.
    pub fn text(&mut self, key: &'static str, value: Option<impl Display>) {
        if let (Some(open), Some(value)) = (&mut self.0, value) {
            open.set(key, Value::Text(cut(&value).into()));
        }
    }

    /// Says more of it, in a word of our own.
    pub fn word(&mut self, key: &'static str, value: impl Into<Option<&'static str>>) {
        if let (Some(open), Some(value)) = (&mut self.0, value.into()) {
            open.set(key, Value::Text(value.into()));
        }
    }

    /// It failed; `class` is one of few.
    pub fn failed(&mut self, class: &'static str, error: &dyn Display) {
        self.word("error.type", class);
        if let Some(open) = &mut self.0 {
            open.finished.error = Some(cut(error));
        }
    }

    /// What came of it is an error, of which [`Self::text`] says more.
    pub fn is_an_error(&mut self) {
        if let Some(open) = &mut self.0 {
            open.finished.error.get_or_insert_default();
        }
    }

    /// Another name, once more is known of it.
    pub fn rename(&mut self, name: &'static str) {
        if let Some(open) = &mut self.0 {
            open.finished.name = name;
        }
    }

    /// It has to do with another span.
    pub fn link(&mut self, to: Option<SpanContext>) {
        if let Some(open) = &mut self.0 {
            open.finished.link = to;
        }
    }

    /// What becomes of the fields of a request that goes on below it. `None`: they stay as they are.
    pub fn onward(&self) -> Option<Onward> {
        let finished = &self.0.as_ref()?.finished;
        let joined = matches!(finished.parent, Some((_, true)));
        Some(Onward::new(&finished.context, !joined))
    }
}

impl Open {
    fn set(&mut self, key: &'static str, value: Value) {
        let attributes = &mut self.finished.attributes;
        match attributes.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => *known = value,
            None => attributes.push((key, value)),
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            let Open {
                tracer,
                began,
                ended,
                mut finished,
                ..
            } = *open;
            let ended = ended.unwrap_or_else(Instant::now);
            finished.took = ended.saturating_duration_since(began);
            tracer.sink.take(finished);
        }
    }
}

/// The beginning of a text.
fn cut(value: &dyn Display) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write!(text, "{value}");
    if let Some((end, _)) = text.char_indices().nth(MAX_TEXT) {
        text.truncate(end);
    }
    text
}

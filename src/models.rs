//! Lent and borrowed models: which there are ([`catalog`], [`lent`]), who answers a request
//! ([`select`], [`outbound`]), and the call to the provider ([`inbound`], [`serve`], [`provider`]).
//!
//! Everything here is a tunnel for bytes. A request body is scanned for `model` ([`splice`]) and never
//! parsed; an answer goes on as it came.

pub mod answer;
pub mod catalog;
pub mod commit;
pub mod endpoint;
pub mod headers;
pub mod idempotency;
pub mod inbound;
pub mod lent;
pub mod outbound;
pub mod pool;
pub mod provider;
pub mod select;
pub mod serve;
pub mod splice;

/// The model routes of the local API; the text is what follows `/v1/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    /// `chat/completions`
    ChatCompletions,
    /// `responses`
    Responses,
    /// `embeddings`
    Embeddings,
    /// `completions`
    Completions,
    /// `messages`
    Messages,
}

impl Route {
    /// Every route.
    pub const ALL: [Route; 5] = [
        Route::ChatCompletions,
        Route::Responses,
        Route::Embeddings,
        Route::Completions,
        Route::Messages,
    ];

    /// What follows `/v1/` in the path.
    #[must_use]
    pub const fn tail(self) -> &'static str {
        match self {
            Route::ChatCompletions => "chat/completions",
            Route::Responses => "responses",
            Route::Embeddings => "embeddings",
            Route::Completions => "completions",
            Route::Messages => "messages",
        }
    }

    /// The route with this tail.
    #[must_use]
    pub fn from_tail(tail: &str) -> Option<Route> {
        Route::ALL.into_iter().find(|route| route.tail() == tail)
    }
}

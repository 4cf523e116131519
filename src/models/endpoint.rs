//! Where a lent model is served: address, api kind, credentials. Built from local configuration only,
//! never from anything a peer or a request says (protocol 9).

use std::{collections::BTreeMap, fmt, sync::Arc};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, HOST},
};
use url::Url;

use super::Route;
use crate::crypto::secret::Secret;

/// The api a provider speaks, in OpenClaw's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiKind {
    /// `openai-completions`, `openai-responses` and their relatives: routes stand below the base URL.
    OpenAi(String),
    /// `azure-openai-…`: as above, with the key in `api-key`.
    Azure(String),
    /// `anthropic-messages`: the base URL stands before `/v1`.
    Anthropic,
    /// `mistral-conversations`: as Anthropic, with a bearer key.
    Mistral,
}

impl ApiKind {
    /// Reads OpenClaw's word; none for an api whose requests do not fit the model routes.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        match text {
            "anthropic-messages" => Some(Self::Anthropic),
            "mistral-conversations" => Some(Self::Mistral),
            _ if text.starts_with("azure-openai") => Some(Self::Azure(text.into())),
            // That one posts to paths of its own.
            "openai-chatgpt-responses" | "openai-codex-responses" => None,
            _ if text.starts_with("openai-") => Some(Self::OpenAi(text.into())),
            _ => None,
        }
    }

    /// The api as other nodes should ask for it through the tunnel.
    #[must_use]
    pub fn offered(&self) -> &str {
        match self {
            Self::OpenAi(text) => text,
            // The asking side knows no Azure: it posts to our plain path with our plain token.
            Self::Azure(text) => text.strip_prefix("azure-").unwrap_or(text),
            Self::Anthropic => "anthropic-messages",
            Self::Mistral => "openai-completions",
        }
    }

    /// Whether the routes stand below `<base>/v1` whether or not the base ends in it.
    const fn versions_apart(&self) -> bool {
        match self {
            Self::OpenAi(_) | Self::Azure(_) => false,
            Self::Anthropic | Self::Mistral => true,
        }
    }
}

/// Why a provider cannot be called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Its address is not one.
    #[error("its base URL is not an http or https URL")]
    BaseUrl,
    /// Its address carries a user name or password.
    #[error("its base URL carries credentials")]
    Credentials,
    /// The api has no counterpart among the model routes.
    #[error("its api `{0}` cannot be lent")]
    Api(String),
    /// A header or the key cannot be sent.
    #[error("its header `{0}` cannot be sent")]
    Header(String),
}

/// One provider's address with everything a request to it needs. Its `Debug` shows no secret.
#[derive(Clone)]
pub struct Endpoint {
    /// The provider's name in OpenClaw, for `refresh_key`; none for a server named directly.
    pub provider: Option<String>,
    /// What it speaks.
    pub api: ApiKind,
    /// Whether to use TLS.
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Scheme, host and port in one: what connections are pooled by.
    pub origin: Arc<str>,
    /// The `host` header.
    authority: HeaderValue,
    /// Path before the route, without a slash at its end.
    path: String,
    /// Query of the base URL, kept on every request (`?api-version=…`).
    query: Option<String>,
    /// Credentials and extra headers; they replace what the client sent.
    headers: HeaderMap,
    /// Texts that must not leave this node.
    secrets: Vec<Secret<String>>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("provider", &self.provider)
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Builds an endpoint from its parts.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn new(
        provider: Option<String>,
        base: &Url,
        api: &str,
        key: Option<&Secret<String>>,
        extra: &BTreeMap<String, String>,
    ) -> Result<Self, EndpointError> {
        let kind = ApiKind::from_text(api).ok_or_else(|| EndpointError::Api(api.into()))?;
        let tls = match base.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(EndpointError::BaseUrl),
        };
        if !base.username().is_empty() || base.password().is_some() {
            return Err(EndpointError::Credentials);
        }
        let host = base.host_str().ok_or(EndpointError::BaseUrl)?;
        let port = base.port_or_known_default().ok_or(EndpointError::BaseUrl)?;
        let authority = base
            .port()
            .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let mut path = base.path().trim_end_matches('/').to_owned();
        if kind.versions_apart() {
            let before = path.strip_suffix("/v1").unwrap_or(&path).len();
            path.truncate(before);
            path.push_str("/v1");
        }

        let mut headers = HeaderMap::new();
        let mut secrets = Vec::new();
        for (name, value) in extra {
            let bad = || EndpointError::Header(name.clone());
            let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
            let mut text = HeaderValue::from_str(value).map_err(|_| bad())?;
            if names_secret(parsed.as_str()) {
                text.set_sensitive(true);
                let bare = value.strip_prefix("Bearer ").unwrap_or(value);
                secrets.push(Secret::new(bare.to_owned()));
            }
            headers.insert(parsed, text);
        }
        if let Some(key) = key {
            let (name, text) = match kind {
                ApiKind::OpenAi(_) | ApiKind::Mistral => {
                    (AUTHORIZATION, format!("Bearer {}", key.reveal()))
                }
                ApiKind::Azure(_) => (HeaderName::from_static("api-key"), key.reveal().clone()),
                ApiKind::Anthropic => (HeaderName::from_static("x-api-key"), key.reveal().clone()),
            };
            // A header the operator wrote wins: it is how unusual credentials are configured.
            if !headers.contains_key(&name) {
                let mut value = HeaderValue::try_from(text)
                    .map_err(|_| EndpointError::Header(name.to_string()))?;
                value.set_sensitive(true);
                headers.insert(name, value);
            }
            secrets.push(key.clone());
        }
        secrets.retain(|secret| secret.reveal().len() >= 8);
        Ok(Self {
            provider,
            api: kind,
            tls,
            origin: format!("{}://{host}:{port}", base.scheme()).into(),
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            authority: HeaderValue::try_from(authority).map_err(|_| EndpointError::BaseUrl)?,
            path,
            query: base.query().map(str::to_owned),
            headers,
            secrets,
        })
    }

    /// Path and query of `route` at this provider.
    #[must_use]
    pub fn target(&self, route: Route) -> String {
        let mut out = format!("{}/{}", self.path, route.tail());
        if let Some(query) = &self.query {
            out.push('?');
            out.push_str(query);
        }
        out
    }

    /// The headers of a request: what the client sent and may pass, then ours over it.
    #[must_use]
    pub fn headers(&self, client: &HeaderMap) -> HeaderMap {
        let mut out = client.clone();
        out.insert(HOST, self.authority.clone());
        for (name, value) in &self.headers {
            out.insert(name, value.clone());
        }
        if self.api == ApiKind::Anthropic {
            // Required by that api; clients of the other kinds do not know it.
            out.entry("anthropic-version")
                .or_insert(HeaderValue::from_static("2023-06-01"));
        }
        out
    }

    /// Whether the two would send the same credentials.
    #[must_use]
    pub fn same_credentials(&self, other: &Self) -> bool {
        self.headers == other.headers
    }

    /// Whether this is the local API of the node itself: lending that would be a loop.
    #[must_use]
    pub fn is_local_api(&self, proxy_port: u16) -> bool {
        let local = matches!(self.host.as_str(), "localhost" | "::1" | "0.0.0.0" | "::")
            || self
                .host
                .parse::<std::net::Ipv4Addr>()
                .is_ok_and(|address| address.is_loopback());
        local && self.port == proxy_port
    }

    /// `body` without our credentials, should the provider have repeated them.
    #[must_use]
    pub fn redact(&self, body: bytes::Bytes) -> bytes::Bytes {
        let mut body = body;
        for secret in &self.secrets {
            let needle = secret.reveal().as_bytes();
            let mut rest = &body[..];
            let mut out = Vec::new();
            while let Some(at) = memchr::memmem::find(rest, needle) {
                out.extend_from_slice(&rest[..at]);
                out.extend_from_slice(b"[redacted]");
                rest = &rest[at + needle.len()..];
            }
            if !out.is_empty() {
                out.extend_from_slice(rest);
                body = out.into();
            }
        }
        body
    }
}

/// Whether a header of this name carries a credential.
fn names_secret(name: &str) -> bool {
    ["auth", "key", "token", "secret", "cookie", "password"]
        .iter()
        .any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(base: &str, api: &str) -> Result<Endpoint, EndpointError> {
        Endpoint::new(
            None,
            &Url::parse(base).unwrap(),
            api,
            Some(&Secret::new("sk-secret-key".to_owned())),
            &BTreeMap::new(),
        )
    }

    #[test]
    fn routes_join_the_base_url_by_api_kind() {
        for (base, api, route, target) in [
            (
                "https://api.openai.com/v1",
                "openai-completions",
                Route::ChatCompletions,
                "/v1/chat/completions",
            ),
            (
                "https://api.openai.com/v1/",
                "openai-responses",
                Route::Responses,
                "/v1/responses",
            ),
            (
                "http://127.0.0.1:8000",
                "openai-completions",
                Route::Embeddings,
                "/embeddings",
            ),
            (
                "https://api.anthropic.com",
                "anthropic-messages",
                Route::Messages,
                "/v1/messages",
            ),
            (
                "https://api.anthropic.com/v1/",
                "anthropic-messages",
                Route::Messages,
                "/v1/messages",
            ),
            (
                "https://x.example/anthropic",
                "anthropic-messages",
                Route::Messages,
                "/anthropic/v1/messages",
            ),
            (
                "https://api.mistral.ai",
                "mistral-conversations",
                Route::ChatCompletions,
                "/v1/chat/completions",
            ),
            (
                "https://a.example/openai/v1?api-version=1",
                "azure-openai-responses",
                Route::Responses,
                "/openai/v1/responses?api-version=1",
            ),
        ] {
            assert_eq!(endpoint(base, api).unwrap().target(route), target, "{base}");
        }
    }

    #[test]
    fn each_api_gets_the_key_its_own_way() {
        let headers =
            |base: &str, api: &str| endpoint(base, api).unwrap().headers(&HeaderMap::new());
        let openai = headers("http://h/v1", "openai-completions");
        assert_eq!(openai["authorization"], "Bearer sk-secret-key");
        assert!(openai["authorization"].is_sensitive());
        let anthropic = headers("http://h", "anthropic-messages");
        assert_eq!(anthropic["x-api-key"], "sk-secret-key");
        assert_eq!(anthropic["anthropic-version"], "2023-06-01");
        assert!(!anthropic.contains_key("authorization"));
        assert_eq!(
            headers("http://h", "azure-openai-responses")["api-key"],
            "sk-secret-key"
        );
    }

    #[test]
    fn configured_headers_win_over_the_key_and_over_the_client() {
        let extra = BTreeMap::from([
            ("Authorization".to_owned(), "Basic abcdefghijk".to_owned()),
            ("X-Title".to_owned(), "ours".to_owned()),
        ]);
        let made = Endpoint::new(
            None,
            &Url::parse("http://h:81/v1").unwrap(),
            "openai-completions",
            Some(&Secret::new("sk-secret-key".to_owned())),
            &extra,
        )
        .unwrap();
        let mut client = HeaderMap::new();
        client.insert("x-title", HeaderValue::from_static("theirs"));
        let sent = made.headers(&client);
        assert_eq!(sent["authorization"], "Basic abcdefghijk");
        assert_eq!(sent["x-title"], "ours");
        assert_eq!(sent["host"], "h:81");
    }

    #[test]
    fn what_cannot_be_called_is_refused() {
        assert_eq!(
            endpoint("ftp://h/v1", "openai-completions").unwrap_err(),
            EndpointError::BaseUrl
        );
        assert_eq!(
            endpoint("http://u:p@h/v1", "openai-completions").unwrap_err(),
            EndpointError::Credentials
        );
        assert!(matches!(
            endpoint("http://h/v1", "google-vertex"),
            Err(EndpointError::Api(_))
        ));
    }

    #[test]
    fn an_echoed_key_is_redacted() {
        let made = endpoint("http://h/v1", "openai-completions").unwrap();
        let body = bytes::Bytes::from_static(b"bad key sk-secret-key (sk-secret-key)");
        assert_eq!(made.redact(body), "bad key [redacted] ([redacted])");
        assert!(!format!("{made:?}").contains("sk-secret"));
    }

    #[test]
    fn our_own_address_is_recognised() {
        for base in [
            "http://127.0.0.1:19001/v1",
            "http://localhost:19001/nodes/a/v1",
            "http://[::1]:19001/v1",
        ] {
            assert!(
                endpoint(base, "openai-completions")
                    .unwrap()
                    .is_local_api(19001),
                "{base}"
            );
        }
        assert!(
            !endpoint("http://127.0.0.1:8000/v1", "openai-completions")
                .unwrap()
                .is_local_api(19001)
        );
    }
}

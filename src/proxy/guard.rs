//! Keeps web pages away from the local API (protocol 9): a page may make a browser send requests here,
//! directly or by DNS rebinding, but it cannot choose `Host`, and it cannot hide `Origin`.

use http::{
    HeaderMap, Method, Uri,
    header::{CONTENT_TYPE, HOST, ORIGIN},
};

use crate::wire::code::{Code, Failure};

/// Checks what every request must satisfy, before anything is looked up.
///
/// # Errors
/// `misdirected_request` (421) for a foreign `Host`, `forbidden` (403) for what a browser sent.
pub fn check(method: &Method, uri: &Uri, headers: &HeaderMap, port: u16) -> Result<(), Failure> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok());
    let ours = |host: &str| {
        host.rsplit_once(':').is_some_and(|(name, given)| {
            matches!(name, "127.0.0.1" | "localhost" | "[::1]") && given.parse() == Ok(port)
                // `+19001` parses as a number too.
                && given.bytes().all(|b| b.is_ascii_digit())
        })
    };
    // An absolute target (`GET http://…`) names a host as well, and wins over the header in HTTP.
    let target = uri
        .authority()
        .is_none_or(|authority| ours(authority.as_str()));
    if hosts.next().is_some() || !host.is_some_and(ours) || !target {
        return Err(Failure::not_started(
            Code::MisdirectedRequest,
            format!("this is the local API of clawmatrix; ask for `127.0.0.1:{port}`"),
        ));
    }
    let browser = |what: &str| {
        Failure::not_started(
            Code::Forbidden,
            format!("requests from web pages are refused: {what}"),
        )
    };
    if *method == Method::OPTIONS {
        return Err(browser("no cross-origin access is granted"));
    }
    if headers.contains_key(ORIGIN) {
        return Err(browser("the request carries `Origin`"));
    }
    let sites = headers.get_all("sec-fetch-site");
    if sites.iter().any(|site| site.as_bytes() != b"none") {
        return Err(browser("`Sec-Fetch-Site` is not `none`"));
    }
    Ok(())
}

/// Checks the content type of a request that carries a body: a page can post forms and plain text
/// without asking, JSON it cannot.
///
/// # Errors
/// `unsupported_media_type` (415).
pub fn check_content_type(path: &str, headers: &HeaderMap) -> Result<(), Failure> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let kind = types.next().and_then(|kind| kind.to_str().ok());
    let essence = kind
        .and_then(|kind| kind.split(';').next())
        .map(|kind| kind.trim().to_ascii_lowercase());
    let media = path.contains("/v1/audio/") || path.contains("/v1/images/");
    let fits = match essence.as_deref() {
        Some("application/json") => true,
        Some("multipart/form-data") => media,
        _ => false,
    };
    if fits && types.next().is_none() {
        return Ok(());
    }
    Err(Failure::not_started(
        Code::UnsupportedMediaType,
        "`content-type` must be `application/json`",
    ))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut out = HeaderMap::new();
        for (name, value) in pairs {
            out.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        out
    }

    fn status(pairs: &[(&'static str, &'static str)], uri: &str, method: &Method) -> u16 {
        let uri = uri.parse().unwrap();
        match check(method, &uri, &headers(pairs), 19001) {
            Ok(()) => 200,
            Err(failure) => failure.code.http_status(),
        }
    }

    #[test]
    fn host_must_be_one_of_ours_exactly() {
        let get = Method::GET;
        for host in ["127.0.0.1:19001", "localhost:19001", "[::1]:19001"] {
            assert_eq!(status(&[("host", host)], "/", &get), 200, "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1",
            "127.0.0.1:19002",
            "127.0.0.1:+19001",
            "127.0.0.1.nip.io:19001",
            "user@127.0.0.1:19001",
            "localhost.:19001",
            "",
        ] {
            assert_eq!(status(&[("host", host)], "/", &get), 421, "{host}");
        }
        assert_eq!(status(&[], "/", &get), 421);
        let two = [("host", "127.0.0.1:19001"), ("host", "evil")];
        assert_eq!(status(&two, "/", &get), 421);
        let good = [("host", "127.0.0.1:19001")];
        assert_eq!(status(&good, "http://evil.example/v1/models", &get), 421);
        assert_eq!(status(&good, "http://127.0.0.1:19001/v1/models", &get), 200);
    }

    #[test]
    fn what_a_browser_marks_is_refused() {
        let host = ("host", "127.0.0.1:19001");
        for (header, expected) in [
            (("origin", "http://evil"), 403),
            (("origin", "null"), 403),
            (("origin", "http://127.0.0.1:19001"), 403),
            (("sec-fetch-site", "cross-site"), 403),
            (("sec-fetch-site", "same-origin"), 403),
            (("sec-fetch-site", "none"), 200),
            (("sec-fetch-mode", "cors"), 200),
        ] {
            assert_eq!(
                status(&[host, header], "/", &Method::POST),
                expected,
                "{header:?}"
            );
        }
        assert_eq!(status(&[host], "/", &Method::OPTIONS), 403);
    }

    #[test]
    fn only_json_may_be_posted() {
        let fits = |path: &str, kind: &[(&'static str, &'static str)]| {
            check_content_type(path, &headers(kind)).is_ok()
        };
        let path = "/v1/chat/completions";
        assert!(fits(path, &[("content-type", "application/json")]));
        assert!(fits(
            path,
            &[("content-type", "Application/JSON; charset=utf-8")]
        ));
        assert!(!fits(path, &[("content-type", "text/plain")]));
        assert!(!fits(
            path,
            &[("content-type", "application/json, text/plain")]
        ));
        assert!(!fits(
            path,
            &[("content-type", "multipart/form-data; boundary=a")]
        ));
        assert!(!fits(path, &[]));
        assert!(fits(
            "/v1/audio/transcriptions",
            &[("content-type", "multipart/form-data; boundary=a")]
        ));
    }
}

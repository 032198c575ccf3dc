//! Protection of the pages: whose requests are answered, and what a browser may do with the answers.
//!
//! The host of a request must be one of ours, which ends DNS rebinding. A request that changes something must
//! come from a page of ours: browsers say so themselves (`Sec-Fetch-Site`), and the session's cookie is
//! `SameSite=Strict` besides. Every answer carries a policy that allows scripts, styles and connections of
//! our own origin alone, and neither inline code nor frames.

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, ORIGIN, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use protocol::{Refusal, error_code};

/// Everything is forbidden but our own files; scripts may not make code or markup of text.
pub(crate) const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

/// Returns the headers of every answer.
fn headers_of_answers() -> [(HeaderName, &'static str); 8] {
    [
        (CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (X_FRAME_OPTIONS, "DENY"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (
            HeaderName::from_static("permissions-policy"),
            "publickey-credentials-get=(self), publickey-credentials-create=(self), camera=(), \
             geolocation=(), microphone=()",
        ),
    ]
}

/// Header with which a browser names the relation of the page that sends a request to its destination.
const FETCH_SITE: &str = "sec-fetch-site";

/// Beginning of the name of the session's cookie.
const COOKIE: &str = "quorate-console";

/// Addresses at which a console is open, like `https://control-1.example`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebOrigins {
    /// The first is the address that links name.
    own: Vec<String>,
}

impl WebOrigins {
    /// Returns the address of a console on this machine's loopback.
    #[must_use]
    pub fn of_localhost(port: u16) -> Self {
        Self { own: vec![format!("http://localhost:{port}")] }
    }

    /// Returns the addresses of a replica by the base URL of its API. A replica on loopback is also open at
    /// `localhost`, since passkeys need a name.
    #[must_use]
    pub fn of_replica(api: &str) -> Self {
        let base = api.trim_end_matches('/').to_ascii_lowercase();
        let alias = base.strip_prefix("http://127.0.0.1:").map(|port| format!("http://localhost:{port}"));
        Self { own: std::iter::once(base).chain(alias).collect() }
    }

    /// Returns the address that links name.
    #[must_use]
    pub fn address(&self) -> &str {
        self.own.first().map_or("", String::as_str)
    }

    /// Returns the link that signs a browser in with this code.
    #[must_use]
    pub fn sign_in_url(&self, code: &str) -> String {
        format!("{}/console/enter?code={code}", self.address())
    }

    fn is_secure(&self) -> bool {
        self.address().starts_with("https://")
    }

    /// Returns the name of the session's cookie. Cookies of one host are shared by its ports, so the port is
    /// part of the name.
    pub(crate) fn cookie_name(&self) -> String {
        let port = self.address().rsplit(':').next().filter(|port| port.bytes().all(|b| b.is_ascii_digit()));
        let name = port.map_or(COOKIE.to_string(), |port| format!("{COOKIE}-{port}"));
        // Browsers accept this prefix only for a secure cookie of this host alone.
        if self.is_secure() { format!("__Host-{name}") } else { name }
    }

    /// Returns the header that sets the session's cookie; an empty key removes it.
    pub(crate) fn cookie(&self, key: &str) -> String {
        let age = if key.is_empty() { "; Max-Age=0" } else { "" };
        let secure = if self.is_secure() { "; Secure" } else { "" };
        format!("{}={key}; Path=/; HttpOnly; SameSite=Strict{secure}{age}", self.cookie_name())
    }

    /// Checks that a request is for this console and, if it may change something, from one of its pages.
    pub(crate) fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        let named = headers.get(HOST).and_then(|value| value.to_str().ok());
        let host = uri.authority().map(axum::http::uri::Authority::as_str).or(named).unwrap_or_default();
        if !self.own.iter().any(|own| is_host_of(own, &host.to_ascii_lowercase())) {
            let message = format!("this console is open at {} only", self.address());
            return Err(Refusal::new(error_code::CONSOLE_HOST_REFUSED, message));
        }
        if method == Method::GET || method == Method::HEAD || self.is_own_page(headers) {
            return Ok(());
        }
        let message = "the request does not come from a page of this console; nothing was done";
        Err(Refusal::new(error_code::CONSOLE_ORIGIN_REFUSED, message))
    }

    /// Returns whether the browser says that one of our pages sent the request.
    ///
    /// Forms of a page without a referrer have the origin `null`, so the browser's own word comes first.
    fn is_own_page(&self, headers: &HeaderMap) -> bool {
        let text = |value: Option<&HeaderValue>| value.and_then(|v| v.to_str().ok()).map(str::to_lowercase);
        let is_own = |origin: &str| self.own.iter().any(|own| own == origin);
        match (text(headers.get(FETCH_SITE)), text(headers.get(ORIGIN))) {
            (Some(site), Some(origin)) if origin != "null" => site == "same-origin" && is_own(&origin),
            (Some(site), _) => site == "same-origin",
            (None, Some(origin)) => is_own(&origin),
            (None, None) => false,
        }
    }
}

/// Returns whether a `Host` header names this address. Browsers leave out the default port.
fn is_host_of(own: &str, host: &str) -> bool {
    let Some((scheme, authority)) = own.split_once("://") else { return false };
    let default = if scheme == "https" { ":443" } else { ":80" };
    authority == host
        || authority.strip_suffix(default) == Some(host)
        || host.strip_suffix(default) == Some(authority)
}

/// Adds the headers of every answer.
pub(crate) fn protect(headers: &mut HeaderMap) {
    for (name, value) in headers_of_answers() {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// Returns the value of a cookie among those that a browser sent.
pub(crate) fn cookie_value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(axum::http::header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(found, _)| *found == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().expect("a name"), value.parse().expect("a value"))
        };
        pairs.iter().map(pair).collect()
    }

    fn check(origins: &WebOrigins, method: Method, pairs: &[(&str, &str)]) -> Option<protocol::ErrorCode> {
        let outcome = origins.check(&method, &Uri::from_static("/console"), &headers(pairs));
        outcome.err().map(|refusal| refusal.code)
    }

    /// Attack: a name of the attacker's resolves to this machine, and its pages read ours.
    #[test]
    fn a_request_for_another_host_is_refused() {
        let local = WebOrigins::of_localhost(7607);
        let refused = Some(error_code::CONSOLE_HOST_REFUSED);
        for (host, expected) in [
            ("localhost:7607", None),
            ("LOCALHOST:7607", None),
            ("evil.example:7607", refused),
            ("localhost.evil.example:7607", refused),
            ("127.0.0.1:7607", refused),
            ("localhost:7608", refused),
            ("localhost", refused),
            ("", refused),
        ] {
            assert_eq!(check(&local, Method::GET, &[("host", host)]), expected, "{host}");
        }
        assert_eq!(check(&local, Method::GET, &[]), refused);
        let replica = WebOrigins::of_replica("https://Control-1.example:443/");
        for (host, expected) in [
            ("control-1.example", None),
            ("control-1.example:443", None),
            ("control-1.example:80", refused),
            ("control-2.example", refused),
        ] {
            assert_eq!(check(&replica, Method::GET, &[("host", host)]), expected, "{host}");
        }
        // HTTP/2 names the host in the address of the request.
        let uri = Uri::from_static("https://control-1.example/console");
        assert_eq!(replica.check(&Method::GET, &uri, &HeaderMap::new()), Ok(()));
    }

    /// Attack: a page elsewhere sends the visitor's browser here with a form.
    #[test]
    fn a_request_that_changes_something_comes_from_our_own_page() {
        let local = WebOrigins::of_localhost(7607);
        let refused = Some(error_code::CONSOLE_ORIGIN_REFUSED);
        let own = "http://localhost:7607";
        for (site, origin, expected) in [
            (Some("same-origin"), Some("null"), None),
            (Some("same-origin"), Some(own), None),
            (Some("same-origin"), None, None),
            (None, Some(own), None),
            (Some("cross-site"), Some("null"), refused),
            (Some("cross-site"), Some("https://evil.example"), refused),
            (Some("cross-site"), Some(own), refused),
            (Some("same-site"), Some("http://localhost:1"), refused),
            (Some("same-origin"), Some("https://evil.example"), refused),
            (Some("none"), None, refused),
            (None, Some("null"), refused),
            (None, Some("https://evil.example"), refused),
            (None, None, refused),
        ] {
            let pairs = [("host", Some("localhost:7607")), ("sec-fetch-site", site), ("origin", origin)];
            let pairs: Vec<(&str, &str)> = pairs.iter().filter_map(|(n, v)| Some((*n, (*v)?))).collect();
            for method in [Method::POST, Method::PUT, Method::DELETE] {
                assert_eq!(check(&local, method, &pairs), expected, "{pairs:?}");
            }
            // Positive control: reading is not refused, since it changes nothing.
            assert_eq!(check(&local, Method::GET, &pairs), None, "{pairs:?}");
        }
    }

    #[test]
    fn the_cookie_is_for_our_pages_alone_and_secure_over_tls() {
        let local = WebOrigins::of_localhost(7607);
        assert_eq!(local.cookie("k"), "quorate-console-7607=k; Path=/; HttpOnly; SameSite=Strict");
        assert!(local.cookie("").ends_with("; Max-Age=0"));
        let replica = WebOrigins::of_replica("https://control-1.example");
        let expected = "__Host-quorate-console=k; Path=/; HttpOnly; SameSite=Strict; Secure";
        assert_eq!(replica.cookie("k"), expected);
        let sent = headers(&[("cookie", "other=1; quorate-console-7607=abc; quorate-console=x")]);
        assert_eq!(cookie_value(&sent, &local.cookie_name()), Some("abc"));
        assert_eq!(cookie_value(&sent, "quorate-console-7608"), None);
    }

    #[test]
    fn a_replica_on_loopback_is_open_at_localhost_too() {
        let replica = WebOrigins::of_replica("http://127.0.0.1:4100");
        assert_eq!(replica.address(), "http://127.0.0.1:4100");
        for host in ["127.0.0.1:4100", "localhost:4100"] {
            assert_eq!(check(&replica, Method::GET, &[("host", host)]), None, "{host}");
        }
        let link = replica.sign_in_url("abc");
        assert_eq!(link, "http://127.0.0.1:4100/console/enter?code=abc");
    }

    #[test]
    fn every_answer_forbids_foreign_code_and_frames() {
        let mut headers = HeaderMap::new();
        protect(&mut headers);
        assert_eq!(headers.len(), headers_of_answers().len());
        let policy = headers[CONTENT_SECURITY_POLICY].to_str().expect("text");
        for rule in ["default-src 'none'", "frame-ancestors 'none'", "trusted-types 'none'"] {
            assert!(policy.contains(rule), "{rule}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    }
}

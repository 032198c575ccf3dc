//! Refusals that a listener makes before any route is chosen, in the form that its clients read.
//!
//! The HTTP/1 library answers an unreadable or oversized head itself, with an empty body. A listener for
//! programs that parse every error (OpenAI's clients) states its own form, and [`Refusing`] writes that
//! instead.

use bytes::{Buf, Bytes};
use http::{HeaderValue, Response, StatusCode, header};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Form of a listener's own refusals.
#[derive(Debug, Clone, Copy)]
pub struct RefusalForm {
    /// Content type of the body.
    pub content_type: &'static str,
    /// Writes the body for a status and a sentence about its cause.
    pub body: fn(StatusCode, &'static str) -> String,
}

impl Default for RefusalForm {
    /// Returns the sentence alone, as plain text.
    fn default() -> Self {
        Self { content_type: "text/plain; charset=utf-8", body: |_, sentence| sentence.to_owned() }
    }
}

impl RefusalForm {
    /// Builds the answer.
    pub(crate) fn response(&self, status: StatusCode, sentence: &'static str) -> Response<crate::Body> {
        let mut response = Response::new(crate::Body::from((self.body)(status, sentence)));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        response
    }

    /// Builds the bytes of the answer on HTTP/1; the connection ends with it.
    fn bytes(&self, status: StatusCode, sentence: &'static str) -> Bytes {
        let body = (self.body)(status, sentence);
        let reason = status.canonical_reason().unwrap_or_default();
        let code = status.as_u16();
        let (kind, length) = (self.content_type, body.len());
        Bytes::from(format!(
            "HTTP/1.1 {code} {reason}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\
             connection: close\r\n\r\n{body}"
        ))
    }
}

/// Recognizes a refusal of the HTTP/1 library: a head without a body, and nothing else.
fn refusal_in(written: &[u8]) -> Option<(StatusCode, &'static str)> {
    const END: &[u8] = b"\r\n\r\n";
    let version = written.strip_prefix(b"HTTP/1.")?;
    let status = StatusCode::from_bytes(version.get(2..5)?).ok()?;
    let is_head = written.windows(END.len()).position(|part| part == END)? + END.len() == written.len();
    let is_empty = written.windows(19).any(|part| part.eq_ignore_ascii_case(b"content-length: 0\r\n"));
    if !is_head || !is_empty {
        return None;
    }
    let sentence = match status {
        StatusCode::BAD_REQUEST => "the head of the request is not valid HTTP/1.1",
        StatusCode::URI_TOO_LONG => "the path of the request is too long",
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => HEAD_TOO_LARGE,
        _ => return None,
    };
    Some((status, sentence))
}

/// Sentence about a head above [`crate::Limits::header_bytes_max`].
pub(crate) const HEAD_TOO_LARGE: &str = "the head of the request is too large";

/// Stream of an HTTP/1 connection whose library's refusals are written in the listener's form.
pub(crate) struct Refusing<S> {
    inner: S,
    form: RefusalForm,
    /// A refusal being written, and the length of that which it replaces.
    pending: Option<(Bytes, usize)>,
}

impl<S> Refusing<S> {
    pub(crate) fn new(inner: S, form: RefusalForm) -> Self {
        Self { inner, form, pending: None }
    }
}

impl<S: AsyncWrite + Unpin> Refusing<S> {
    /// Writes the pending refusal; ready with the length of that which it replaces.
    fn poll_pending(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some((bytes, replaced)) = &mut self.pending else { return Poll::Ready(Ok(0)) };
        while bytes.has_remaining() {
            match ready!(Pin::new(&mut self.inner).poll_write(context, bytes)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => bytes.advance(count),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let replaced = *replaced;
        self.pending = None;
        Poll::Ready(Ok(replaced))
    }

    /// Reports whether a refusal is to be written instead of these bytes.
    fn replaces(&mut self, written: &[u8]) -> bool {
        if self.pending.is_none()
            && let Some((status, sentence)) = refusal_in(written)
        {
            self.pending = Some((self.form.bytes(status, sentence), written.len()));
        }
        self.pending.is_some()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Refusing<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Refusing<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.replaces(bytes) {
            return self.poll_pending(context);
        }
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A refusal is one part: it has no body.
        let mut filled = parts.iter().filter(|part| !part.is_empty());
        if let (Some(head), None) = (filled.next(), filled.next())
            && self.replaces(head)
        {
            return self.poll_pending(context);
        }
        Pin::new(&mut self.inner).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const JSON: RefusalForm = RefusalForm {
        content_type: "application/json",
        body: |status, _| format!("{{{}}}", status.as_u16()),
    };

    async fn written(parts: &[&[u8]]) -> String {
        let (near, mut far) = duplex(7);
        let mut stream = Refusing::new(near, JSON);
        let write = async {
            for part in parts {
                stream.write_all(part).await.unwrap();
            }
            drop(stream);
        };
        let mut text = String::new();
        let (_, read) = tokio::join!(write, far.read_to_string(&mut text));
        read.unwrap();
        text
    }

    #[tokio::test]
    async fn a_refusal_of_the_library_is_written_in_the_listeners_form() {
        for (status, line) in [(400, "400 Bad Request"), (431, "431 Request Header Fields Too Large")] {
            let refusal =
                format!("HTTP/1.1 {line}\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n");
            let expected = format!(
                "HTTP/1.1 {line}\r\ncontent-type: application/json\r\ncontent-length: 5\r\n\
                 connection: close\r\n\r\n{{{status}}}"
            );
            assert_eq!(written(&[refusal.as_bytes()]).await, expected);
        }
    }

    #[tokio::test]
    async fn everything_else_is_written_as_it_is() {
        let answers: [&[u8]; 6] = [
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\nx",
            b"data: HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.",
        ];
        for answer in answers {
            assert_eq!(written(&[answer]).await.as_bytes(), answer);
        }
    }
}

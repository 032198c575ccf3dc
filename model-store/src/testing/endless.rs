//! An HTTP server on loopback whose answers have no end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Bytes of one write.
const CHUNK_BYTES: usize = 64 * 1024;

/// Server that answers every request with the same head, then with zeros until the client disconnects.
pub(crate) struct Endless {
    pub(crate) endpoint: String,
    sent: Arc<AtomicU64>,
    /// Number of connections in service.
    open: watch::Receiver<usize>,
}

impl Endless {
    /// Starts a server that begins every answer with `head`: a status line and fields.
    pub(crate) async fn start(head: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let sent = Arc::new(AtomicU64::new(0));
        let (count, open) = watch::channel(0);
        let (count, counter) = (Arc::new(count), sent.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (counter, count) = (counter.clone(), count.clone());
                count.send_modify(|open| *open += 1);
                tokio::spawn(async move {
                    // An error means that the client disconnected, as expected.
                    let _ = answer(socket, head, &counter).await;
                    count.send_modify(|open| *open -= 1);
                });
            }
        });
        Self { endpoint, sent, open }
    }

    /// Returns the bytes handed to the kernel so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// Waits until every client has disconnected; returns the bytes sent in all.
    pub(crate) async fn sent_in_all(&self) -> u64 {
        self.open.clone().wait_for(|open| *open == 0).await.expect("the server runs");
        self.sent()
    }
}

async fn answer(mut socket: TcpStream, head: &str, sent: &AtomicU64) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if socket.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    socket.write_all(head.replace('\n', "\r\n").as_bytes()).await?;
    let zeros = vec![b'0'; CHUNK_BYTES];
    loop {
        sent.fetch_add(socket.write(&zeros).await? as u64, Ordering::SeqCst);
    }
}

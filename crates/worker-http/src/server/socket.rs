//! A connection's socket, and who watches it beside hyper.
//!
//! While hyper waits for an answer it looks for the client's end of the connection only where nothing was sent behind the
//! request: a line end too many, or the next request, would hide that the client has gone.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Reads and writes.
pub(super) struct Socket(Arc<TcpStream>);

/// Knows whether the client has closed its side.
pub(super) struct FarSide(Arc<TcpStream>);

pub(super) fn watched(stream: TcpStream) -> (Socket, FarSide) {
    let stream = Arc::new(stream);
    (Socket(Arc::clone(&stream)), FarSide(stream))
}

impl FarSide {
    /// Returns once the client has closed its side, or all of the connection, whether or not what it sent before has been
    /// read. Elsewhere than on Linux, never: hyper's own look has to do there.
    pub(super) async fn closed(&self) {
        // To wait for "readable" would end at once while there are bytes to read. The socket is not registered for priority
        // data, which leaves the one other thing that this waits for.
        #[cfg(target_os = "linux")]
        if self.0.ready(tokio::io::Interest::PRIORITY).await.is_ok_and(|ready| ready.is_read_closed()) {
            return;
        }
        std::future::pending().await
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read_buf(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(drop)),
            }
        }
    }
}

impl Socket {
    fn poll_try(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match write(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_try(cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_try(cx, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match socket2::SockRef::from(&*self.0).shutdown(Shutdown::Write) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn tells_that_the_client_has_closed_its_side_whatever_is_unread() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut socket, far_side) = watched(listener.accept().await.unwrap().0);
        client.write_all(b"unread").await.unwrap();
        socket.0.readable().await.unwrap();
        assert!(far_side.closed().now_or_never().is_none());
        client.shutdown().await.unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(20), far_side.closed()).await.unwrap();
        // Both directions still work.
        socket.write_all(b"answer").await.unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!((text.as_str(), answer.as_str()), ("unread", "answer"));
    }
}

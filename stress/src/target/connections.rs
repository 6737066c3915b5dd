//! Which connections of guacd to the embedded servers are open? Chaos cuts some of them.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// The connections to the servers within this process, for as long as they are open.
pub struct Connections {
    ports: Mutex<Vec<u16>>,
    /// By their port at guacd's end. None where connections cannot be cut.
    open: Option<Mutex<HashMap<u16, OwnedFd>>>,
}

impl Connections {
    /// No connections yet. `can_be_cut` says whether [`Self::cut`] works, which takes a descriptor for each connection.
    pub fn new(can_be_cut: bool) -> Self {
        Self { ports: Mutex::default(), open: can_be_cut.then(Mutex::default) }
    }

    /// The ports of the servers.
    pub fn ports(&self) -> Vec<u16> {
        lock(&self.ports).clone()
    }

    /// Ends the connection from this port, if there is one.
    pub fn cut(&self, port: u16) {
        if let Some(fd) = self.open.as_ref().and_then(|open| lock(open).remove(&port)) {
            let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
        }
    }

    /// Keeps a connection, so that it can be cut until it ends by itself.
    fn keep(&self, stream: &TcpStream, peer: SocketAddr) {
        use std::os::fd::AsFd;
        if let (Some(open), Ok(fd)) = (&self.open, stream.as_fd().try_clone_to_owned()) {
            lock(open).insert(peer.port(), fd);
        }
    }

    fn forget(&self, peer: SocketAddr) {
        if let Some(open) = &self.open {
            lock(open).remove(&peer.port());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens on a free port, and serves each connection in its own task. A failed accept() is retried. Returns the port.
///
/// # Errors
///
/// When it cannot listen.
pub fn listen<F>(
    host: Ipv4Addr,
    connections: &Arc<Connections>,
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> Result<u16>
where
    F: Future<Output = Option<()>> + Send + 'static,
{
    let socket = TcpSocket::new_v4()?;
    socket.bind((host, 0).into()).with_context(|| format!("find a free port on {host}"))?;
    let listener: TcpListener = socket.listen(4096).with_context(|| format!("listen on {host}"))?;
    let port = listener.local_addr()?.port();
    lock(&connections.ports).push(port);
    let connections = Arc::clone(connections);
    tokio::spawn(async move {
        loop {
            let Ok((stream, peer)) = listener.accept().await else {
                // When descriptors have run out, the next accept() fails at once too.
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                continue;
            };
            // What is typed is small, and has to come back at once.
            let _ = stream.set_nodelay(true);
            connections.keep(&stream, peer);
            let session = serve(stream);
            let connections = Arc::clone(&connections);
            tokio::spawn(async move {
                // Its result does not matter: guacd's session is what is judged.
                let _ = session.await;
                connections.forget(peer);
            });
        }
    });
    Ok(port)
}

//! An SSH server within this process: password login, a terminal, and a program that echoes. It starts no process for
//! a session, so that a run measures guacd.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use russh::{
    Channel, ChannelId, MethodKind, MethodSet, Pty,
    keys::{Algorithm, PrivateKey, key::safe_rng},
    server::{self, Auth, Handler, Msg, Session},
};
use tokio::task::AbortHandle;

use super::{
    connections::{Connections, listen},
    drawing::{Film, Player},
    echo::Echo,
};
use crate::wire::proof::fresh_nonce;

/// What guacd needs to log in.
pub struct Embedded {
    /// Where the server listens on the loopback interface.
    pub port: u16,
    /// The only user.
    pub user: String,
    /// The user's password.
    pub password: String,
}

/// Starts the server. It runs as long as the async runtime does.
///
/// # Errors
///
/// When it cannot listen.
pub fn start(echo: Echo, film: Option<Arc<Film>>, connections: &Arc<Connections>) -> Result<Embedded> {
    let config = Arc::new(server::Config {
        keys: vec![PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).context("make a host key")?],
        methods: MethodSet::from(&[MethodKind::Password][..]),
        // Refusals are slow to stop guessing, except the first: libssh2 tries once without a password, to learn the methods.
        auth_rejection_time: Duration::from_millis(100),
        auth_rejection_time_initial: Some(Duration::ZERO),
        inactivity_timeout: None,
        ..server::Config::default()
    });
    let password = fresh_nonce();
    let server = Server { password: password.clone().into(), echo, greetings: None, film };
    let serve = move |stream| {
        let (config, server) = (Arc::clone(&config), server.clone());
        async move { server::run_stream(config, stream, server).await.ok()?.await.ok() }
    };
    let port = listen(Ipv4Addr::LOCALHOST, connections, serve)?;
    Ok(Embedded { port, user: USER.into(), password })
}

const USER: &str = "guac-stress";

#[derive(Clone)]
struct Server {
    password: Arc<str>,
    echo: Echo,
    /// The task that greets again, until something is typed.
    greetings: Option<AbortHandle>,
    film: Option<Arc<Film>>,
}

impl Server {
    fn begin(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        session.channel_success(channel)?;
        session.data(channel, self.echo.greet())?;
        let (mut greetings, greeting, terminal) = (Echo::greetings(), self.echo.greet(), session.handle());
        let greet_again = async move {
            while greetings.is_due().await && terminal.data(channel, greeting.clone()).await.is_ok() {}
        };
        self.greetings = Some(tokio::spawn(greet_again).abort_handle());
        if let Some(film) = &self.film {
            let (mut player, terminal) = (Player::new(film), session.handle());
            tokio::spawn(async move {
                loop {
                    let frame = player.frame().await;
                    let drawn = [&frame.content, &frame.mark[..]].concat();
                    if terminal.data(channel, drawn).await.is_err() {
                        return;
                    }
                }
            });
        }
        Ok(())
    }
}

impl Handler for Server {
    type Error = russh::Error;

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Self::Error> {
        let known = user == USER && password == &*self.password;
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(&mut self, _: Channel<Msg>, _: &mut Session) -> Result<bool, Self::Error> {
        Ok(true)
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        self.begin(channel, session)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.begin(channel, session)
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(greetings) = self.greetings.take() {
            greetings.abort();
        }
        session.data(channel, self.echo.take(data))
    }
}

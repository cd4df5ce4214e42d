//! What a client can do to a host, and whether it still works: HTTP logins, a TCP port, UDP, ping.
//!
//! Each probe runs on a thread inside the client's namespace and gives up after a bounded time.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::Netns;

/// How long a probe waits for an answer before it calls the host dead.
pub const PATIENCE: Duration = Duration::from_millis(800);

/// A TCP and a UDP echo server inside a namespace, stopped on drop.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    received: Arc<AtomicU64>,
}

impl Echo {
    /// Serves TCP on `address:tcp_port` and UDP on `address:udp_port`.
    ///
    /// # Errors
    /// When a port cannot be bound.
    pub fn start(host: &Netns, address: IpAddr, tcp_port: u16, udp_port: u16) -> Result<Self> {
        let (listener, socket) = host.enter(|| -> io::Result<_> {
            Ok((TcpListener::bind((address, tcp_port))?, UdpSocket::bind((address, udp_port))?))
        })?;
        listener.set_nonblocking(true)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let stopped = Arc::clone(&stop);
        let tcp = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut peer, _)) => {
                        let _gone = peer.write_all(b"echo\n");
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&received));
        let udp = thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                    counted.fetch_add(1, Ordering::Relaxed);
                    let _gone = socket.send_to(&buffer[..length], peer);
                }
            }
        });
        Ok(Self { stop, threads: vec![tcp, udp], received })
    }

    /// Datagrams that reached the server.
    pub fn datagrams(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

/// Whether a TCP connection to the echo server is answered.
pub fn tcp(client: &Netns, host: IpAddr, port: u16) -> bool {
    client.enter(|| {
        let Ok(mut stream) = TcpStream::connect_timeout(&SocketAddr::new(host, port), PATIENCE) else {
            return false;
        };
        let _set = stream.set_read_timeout(Some(PATIENCE));
        stream.read(&mut [0; 8]).is_ok_and(|read| read > 0)
    })
}

/// Whether a datagram to the echo server is answered.
pub fn udp(client: &Netns, host: IpAddr, port: u16) -> bool {
    client.enter(|| {
        let any: IpAddr = if host.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let ask = || -> io::Result<usize> {
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send_to(b"alive?", (host, port))?;
            socket.recv(&mut [0; 16])
        };
        ask().is_ok()
    })
}

/// Whether the host answers an echo request (ping(8)).
pub fn ping(client: &Netns, host: IpAddr) -> bool {
    let mut command = client.command("ping");
    command.args(["-n", "-q", "-c", "1", "-W", "1", &host.to_string()]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Whether the login page is served.
pub fn http(client: &Netns, host: IpAddr, port: u16) -> bool {
    client.enter(|| get(host, port, "/login/", &[]).is_ok_and(|page| page.status == 200))
}

/// What a server answered.
#[derive(Debug)]
pub struct Page {
    /// The HTTP status.
    pub status: u16,
    /// Header lines and body, as they came.
    pub text: String,
}

/// Tries one user name and password at Django's login page at `/login/`; returns the status of the POST: 200 is the
/// page again (a failed login), 302 a successful one.
///
/// # Errors
/// When the host does not answer, or the page has no form.
pub fn login(
    client: &Netns,
    host: IpAddr,
    port: u16,
    user: &str,
    password: &str,
    headers: &[&str],
) -> Result<u16> {
    client.enter(|| {
        let page = get(host, port, "/login/", headers)?;
        let token = between(&page.text, "name=\"csrfmiddlewaretoken\" value=\"", "\"").context("no CSRF token in the page")?;
        let cookie = between(&page.text, "csrftoken=", ";").context("no CSRF cookie in the page")?;
        let body = format!(
            "csrfmiddlewaretoken={token}&username={}&password={}",
            percent_encoded(user),
            percent_encoded(password)
        );
        let mut request = request_head("POST", host, port, "/login/", headers);
        request.push_str(&format!(
            "Cookie: csrftoken={cookie}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        Ok(exchange(host, port, &request)?.status)
    })
}

fn get(host: IpAddr, port: u16, path: &str, headers: &[&str]) -> Result<Page> {
    let mut request = request_head("GET", host, port, path, headers);
    request.push_str("\r\n");
    exchange(host, port, &request)
}

fn request_head(method: &str, host: IpAddr, port: u16, path: &str, headers: &[&str]) -> String {
    let host = SocketAddr::new(host, port);
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for header in headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    head
}

fn exchange(host: IpAddr, port: u16, request: &str) -> Result<Page> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(host, port), PATIENCE)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(1 << 20).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    match status {
        Some(status) => Ok(Page { status, text }),
        None => bail!("not an HTTP answer: {:?}", text.chars().take(80).collect::<String>()),
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(found, _)| found)
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { (b as char).to_string() } else { format!("%{b:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{
        lan::{HOST_V4, HOST_V6, Lan},
        missing, skipped,
    };

    #[test]
    fn probes_tell_a_live_host_from_a_dead_one() {
        if let Some(reason) = missing() {
            return skipped("probes_tell_a_live_host_from_a_dead_one", &reason);
        }
        let mut lan = Lan::new().unwrap();
        lan.add_client("honest", 7).unwrap();
        let client = &lan.clients[0].netns;
        for address in [HOST_V4, HOST_V6] {
            let address: IpAddr = address.parse().unwrap();
            let echo = Echo::start(&lan.host, address, 2222, 5353).unwrap();
            assert!(
                tcp(client, address, 2222) && udp(client, address, 5353) && ping(client, address),
                "{address}"
            );
            assert_eq!(echo.datagrams(), 1);
            drop(echo);
            assert!(!tcp(client, address, 2222) && !udp(client, address, 5353), "{address}");
        }
    }
}

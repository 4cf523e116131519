//! Taking the two ports, with an answer to "in use" that a person can act on.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
};

use super::StartError;

/// Binds `host:port` for the configuration key `key`.
///
/// # Errors
/// [`StartError::PortInUse`] naming a free port, or [`StartError::Bind`].
pub(super) fn bind(key: &'static str, host: IpAddr, port: u16) -> Result<TcpListener, StartError> {
    let address = SocketAddr::new(host, port);
    match listen(address) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(StartError::PortInUse {
            key,
            address,
            free: free_port(host, port),
        }),
        Err(source) => Err(StartError::Bind {
            key,
            address,
            source,
        }),
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for old connections to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `::` means both IP versions, whatever the system's default is.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// The next port above `taken` that is free now, else one the system picks.
fn free_port(host: IpAddr, taken: u16) -> Option<u16> {
    let is_free = |port: &u16| listen(SocketAddr::new(host, *port)).is_ok();
    (taken.saturating_add(1)..=taken.saturating_add(20))
        .find(is_free)
        .or_else(|| {
            let any = listen(SocketAddr::new(host, 0)).ok()?;
            any.local_addr().ok().map(|a| a.port())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_answered_with_a_free_one() {
        let host = IpAddr::from([127, 0, 0, 1]);
        let held = bind("proxyPort", host, 0).unwrap();
        let port = held.local_addr().unwrap().port();
        let Err(StartError::PortInUse { key, free, .. }) = bind("proxyPort", host, port) else {
            panic!("the port is taken");
        };
        assert_eq!(key, "proxyPort");
        let free = free.expect("some port is free");
        assert_ne!(free, port);
        bind("proxyPort", host, free).unwrap();
    }
}

//! A program of two ranks: rank 1 sends bytes to rank 0 by its host name, and gets them back.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

const SENT_BYTES: usize = 8 << 20;
/// Pause before rank 1 dials again: rank 0 may not listen yet.
const REDIAL: Duration = Duration::from_millis(20);

/// Runs the rank that the environment names.
pub(crate) fn run() -> io::Result<()> {
    let variable = |name: &str| std::env::var(name).map_err(|_| io::Error::other(format!("no {name}")));
    let (rank, address) = (variable("RANK")?, variable("MASTER_ADDR")?);
    let port: u16 = variable("MASTER_PORT")?.parse().map_err(io::Error::other)?;
    let pattern: Vec<u8> = (0..SENT_BYTES).map(|at| (at % 251) as u8).collect();
    let mut received = vec![0; SENT_BYTES];
    if rank == "0" {
        let (mut stream, _) = TcpListener::bind((address.as_str(), port))?.accept()?;
        stream.read_exact(&mut received)?;
        stream.write_all(&received)?;
        println!("{address} received {} bytes", received.len());
        // The peer closes once it has read everything.
        stream.read_to_end(&mut Vec::new()).map(drop)
    } else {
        let mut stream = loop {
            match TcpStream::connect((address.as_str(), port)) {
                Ok(stream) => break stream,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::thread::sleep(REDIAL),
                Err(error) => return Err(error),
            }
        };
        stream.write_all(&pattern)?;
        stream.read_exact(&mut received)?;
        if received != pattern {
            return Err(io::Error::other("other bytes came back"));
        }
        println!("rank-1 got them back");
        reach_nothing_else()
    }
}

/// Tries an address outside of the gang's network: there is no route to it.
fn reach_nothing_else() -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    match socket.send_to(b"x", "169.254.169.254:80") {
        Ok(_) => Err(io::Error::other("there is a way to the metadata service")),
        Err(error) => {
            println!("rank 1 reaches nothing else: {error}");
            Ok(())
        }
    }
}

//! Ports in text form: `80/TCP`.

use anyhow::{Context, Result};
use netpol_policy::model::Protocol;

/// Parses `80/TCP`.
///
/// # Errors
/// Returns an error if the text has another form.
pub fn parse(text: &str) -> Result<(Protocol, u16)> {
    let (number, name) = text.split_once('/').with_context(|| format!("{text:?} is not PORT/PROTOCOL"))?;
    let protocol = Protocol::from_name(name).with_context(|| format!("unknown protocol in {text:?}"))?;
    Ok((protocol, number.parse().with_context(|| format!("{text:?} has no port number"))?))
}

/// Formats a port as `80/TCP`.
pub fn text((protocol, port): (Protocol, u16)) -> String {
    format!("{port}/{}", protocol.name())
}

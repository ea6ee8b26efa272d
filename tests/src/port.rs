//! Ports as people write them: `80/TCP`.

use anyhow::{Context, Result};
use netpol_policy::model::Protocol;

/// Reads `80/TCP`.
///
/// # Errors
/// Where it is not of that form.
pub fn parse(text: &str) -> Result<(Protocol, u16)> {
    let (number, name) = text.split_once('/').with_context(|| format!("{text:?} is not PORT/PROTOCOL"))?;
    let protocol = Protocol::from_name(name).with_context(|| format!("unknown protocol in {text:?}"))?;
    Ok((protocol, number.parse().with_context(|| format!("no port number in {text:?}"))?))
}

/// Writes it.
pub fn text((protocol, port): (Protocol, u16)) -> String {
    format!("{port}/{}", protocol.name())
}

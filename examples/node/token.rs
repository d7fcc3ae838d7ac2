//! The token: the secret that the nodes of a cluster show each other, from a file or the
//! environment. Not from the command line, which every user of the machine can read.

use std::env::{self, VarError};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const VARIABLE: &str = "GEECACHE_TOKEN";

/// The token of the file, or else of the environment; `None` if neither is given. A complaint
/// says where the token was to come from, and nothing of the token itself.
pub(crate) fn read(file: Option<&Path>) -> Result<Option<String>, String> {
    let (place, token) = match file {
        Some(file) => {
            let place = file.display().to_string();
            let token = fs::read_to_string(file).map_err(|error| error.to_string());
            // An editor and `echo` end it with a newline.
            (place, token.map(|text| text.strip_suffix('\n').unwrap_or(&text).to_string()))
        }
        None => match env::var(VARIABLE) {
            Err(VarError::NotPresent) => return Ok(None),
            token => (VARIABLE.into(), token.map_err(|_| "not UTF-8".into())),
        },
    };
    let wrong = |what: String| format!("the token in {place}: {what}");
    let token = token.map_err(wrong)?;
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong("it is visible ASCII characters, at least one and no spaces".into()));
    }
    Ok(Some(token))
}

/// Whether every user of the machine may read the file.
pub(crate) fn is_open_to_all(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|file| file.permissions().mode() & 0o004 != 0)
}

//! What PID 1 itself reads of what the host sends about a process: little.

use serde::Deserialize;

use super::head::LinuxHead;

/// What PID 1 itself has to know of a `process` object; the helper reads the rest.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProcessHead {
    #[serde(default)]
    pub(crate) terminal: bool,
    #[serde(default)]
    console_size: Option<Size>,
}

impl ProcessHead {
    /// The size that its terminal is to have from the start.
    pub(crate) fn size(&self) -> Option<Size> {
        self.console_size
    }
}

/// What PID 1 itself has to know of a spec.
#[derive(Debug, Deserialize)]
pub(crate) struct SpecHead {
    #[serde(default)]
    pub(crate) process: ProcessHead,
    #[serde(default)]
    pub(crate) linux: LinuxHead,
}

/// Of a terminal, in characters.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Size {
    pub(crate) height: u16,
    pub(crate) width: u16,
}

impl Size {
    /// As the kernel has it.
    pub(crate) fn window(self) -> libc::winsize {
        libc::winsize { ws_row: self.height, ws_col: self.width, ws_xpixel: 0, ws_ypixel: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_a_spec_is_all_that_is_read() {
        let text = r#"{"process":{"terminal":true,"consoleSize":{"height":24,"width":80},"args":["x"]},"linux":{"seccomp":7}}"#;
        let head: SpecHead = serde_json::from_str(text).expect("json");
        assert!(head.process.terminal);
        assert_eq!(head.process.console_size.map(|size| (size.height, size.width)), Some((24, 80)));
        let bare: SpecHead = serde_json::from_str("{}").expect("json");
        assert!(!bare.process.terminal);
    }
}

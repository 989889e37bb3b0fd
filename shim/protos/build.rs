//! Generates the bindings from the interface definitions in proto/.

use std::{env, fs, io, path::PathBuf};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

const INPUTS: [&str; 18] = [
    "bootstrap",
    "details",
    "envelope",
    "events",
    "introspection",
    "metric",
    "metrics",
    "mount",
    "platform",
    "pod",
    "process",
    "runc",
    "runtimeoptions",
    "sandbox",
    "streaming",
    "task",
    "topics",
    "transfer",
];

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?);
    Codegen::new()
        .inputs(INPUTS.map(|name| format!("proto/{name}.proto")))
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .customize(Customize { async_all: true, ..Customize::default() })
        .out_dir(&out)
        .run()?;
    // `include!` takes no inner attributes or inner documentation: https://github.com/rust-lang/rust/issues/18810
    for entry in fs::read_dir(&out)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            let kept: Vec<&str> =
                text.lines().filter(|line| !line.starts_with("#!") && !line.starts_with("//!")).collect();
            fs::write(&path, kept.join("\n"))?;
        }
    }
    Ok(())
}

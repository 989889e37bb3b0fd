//! Generates the messages and the ttrpc client and service of `proto/agent.proto`.

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=proto/agent.proto");
    ttrpc_codegen::Codegen::new()
        .input("proto/agent.proto")
        .include("proto")
        .rust_protobuf()
        // Without reflection: the agent would pay for every descriptor in its size.
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().lite_runtime(true))
        .customize(ttrpc_codegen::Customize { async_all: true, ..Default::default() })
        .run()?;
    let out = std::env::var_os("OUT_DIR").ok_or_else(|| std::io::Error::other("OUT_DIR is not set"))?;
    // The generated files begin with inner attributes, which only files of their own may.
    std::fs::write(std::path::Path::new(&out).join("api.rs"), "pub mod agent;\npub mod agent_ttrpc;\n")
}

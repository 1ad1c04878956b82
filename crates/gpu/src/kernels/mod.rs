//! Declarations: what kernels there are, what each is specialised by, and what it is launched with.
//!
//! A kernel is declared once. From the declaration come the entry points of all targets (see [`crate::source`]), the order of the
//! buffers, the structure of the arguments in both languages, and a launch function with the buffers' types. Its fields
//! are the template arguments of the body: an instance is a value, and only instances that are used are ever compiled.

mod attention;
mod catalogue;
mod draw;
mod elementwise;
mod experts;
mod linear;
mod norm;
mod panel;
mod route;
mod sample;
mod stream;
mod tiles;
mod weights;

pub use attention::*;
pub use catalogue::{catalogue, tensor_catalogue, weight_types};
pub use draw::*;
pub use elementwise::*;
pub use experts::*;
pub use linear::*;
pub use norm::*;
pub use panel::*;
pub use route::*;
pub use sample::*;
pub use stream::*;
pub use tiles::*;
pub use weights::*;

use std::collections::BTreeMap;

/// Structures by name: how deep they nest (those within come first), and their text.
pub type Structures = BTreeMap<&'static str, (usize, String)>;

/// A template argument.
pub trait Template {
    /// As the body's template takes it.
    fn cxx(&self) -> String;
    /// As part of the name of an instance.
    fn tag(&self) -> String;
}

impl Template for u32 {
    fn cxx(&self) -> String {
        self.to_string()
    }
    fn tag(&self) -> String {
        self.to_string()
    }
}

impl Template for bool {
    fn cxx(&self) -> String {
        self.to_string()
    }
    fn tag(&self) -> String {
        if *self { "y" } else { "n" }.into()
    }
}

/// A field of the arguments: of 4 bytes, or made of such.
pub trait Field: Copy {
    /// As a member of a structure.
    fn member(name: &str) -> String;
    /// Declares the structures it is made of; gives how deep they nest.
    fn declare(_: &mut Structures) -> usize {
        0
    }
}

impl Field for u32 {
    fn member(name: &str) -> String {
        format!("uint {name}")
    }
}

impl Field for f32 {
    fn member(name: &str) -> String {
        format!("float {name}")
    }
}

impl Field for [u32; 8] {
    fn member(name: &str) -> String {
        format!("uint {name}[8]")
    }
}

impl Field for [f32; 16] {
    fn member(name: &str) -> String {
        format!("float {name}[16]")
    }
}

/// A kernel's arguments.
pub trait Arguments: Field {
    /// The structure's name.
    const NAME: &'static str;
    /// As bytes.
    fn bytes(&self) -> &[u8];
}

/// Declares a structure of arguments in both languages.
macro_rules! arguments {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $ty),*
        }

        impl $crate::kernels::Field for $name {
            fn member(name: &str) -> String {
                format!("{} {name}", stringify!($name))
            }
            fn declare(into: &mut $crate::kernels::Structures) -> usize {
                let depth = 1 + [$(<$ty as $crate::kernels::Field>::declare(into)),*].into_iter().max().unwrap_or(0);
                let members = [$(<$ty as $crate::kernels::Field>::member(stringify!($field))),*];
                let text = format!("\nstruct {} {{\n  {};\n}};\n", stringify!($name), members.join(";\n  "));
                into.insert(stringify!($name), (depth, text));
                depth
            }
        }

        impl $crate::kernels::Arguments for $name {
            const NAME: &'static str = stringify!($name);
            fn bytes(&self) -> &[u8] {
                const { assert!(size_of::<$name>() == 0 $(+ size_of::<$ty>())* && align_of::<$name>() == 4) }
                // SAFETY: a `repr(C)` structure of 4-byte numbers, without padding as the assertion says.
                unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<$name>()) }
            }
        }
    };
}
pub(crate) use arguments;

/// Declares a kernel; see the module.
macro_rules! kernel {
    (
        $(#[$doc:meta])*
        $name:ident = $function:literal in $file:literal { $($(#[$field_doc:meta])* $field:ident: $ty:ty),* $(,)? }
        threads $threads:expr;
        shared $shared:expr;
        buffers { $($buffer:ident: $access:ident $element:ident),* $(,)? }
        arguments $arguments:ident
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $ty),*
        }

        impl $name {
            /// The file of the body.
            pub(crate) const FILE: &'static str = $file;

            /// The structures of its arguments.
            pub(crate) fn structures() -> $crate::kernels::Structures {
                let mut structures = $crate::kernels::Structures::new();
                <$arguments as $crate::kernels::Field>::declare(&mut structures);
                structures
            }

            /// Name of the entry point.
            pub fn name(&self) -> String {
                // Not the body's own name, nor one that a target's library may have.
                #[allow(unused_mut)]
                let mut name = format!("mm_{}", $function);
                $(name.push('_'); name.push_str(&$crate::kernels::Template::tag(&self.$field));)*
                name
            }

            /// Threads of a group.
            pub fn threads(&self) -> u32 {
                let threads: fn(&Self) -> u32 = $threads;
                threads(self)
            }

            /// The entry point.
            pub fn entry(&self) -> $crate::source::Entry {
                let shared: fn(&Self) -> Vec<(&'static str, usize)> = $shared;
                let template: Vec<String> = vec![$($crate::kernels::Template::cxx(&self.$field)),*];
                let call = if template.is_empty() { $function.to_owned() } else { format!("{}<{}>", $function, template.join(", ")) };
                $crate::source::Entry {
                    name: self.name(),
                    file: $file,
                    call,
                    threads: self.threads(),
                    shared: shared(self),
                    parameters: vec![$($crate::source::Parameter {
                        name: stringify!($buffer),
                        element: $crate::kernels::element!($element),
                        access: $crate::kernels::access!($access),
                    }),*],
                    arguments: <$arguments as $crate::kernels::Arguments>::NAME,
                    declarations: Self::structures(),
                }
            }

            /// Asks for it to run on so many groups.
            #[allow(clippy::too_many_arguments)]
            pub fn launch(
                &self,
                gpu: &$crate::Gpu,
                groups: [u32; 3],
                $($buffer: &$crate::Slice<$element>,)*
                arguments: &$arguments,
            ) -> $crate::Result<()> {
                let bindings = [$($buffer.binding($crate::kernels::access!($access))),*];
                let bytes = $crate::kernels::Arguments::bytes(arguments);
                gpu.launch(&self.name(), || self.entry(), self.threads(), groups, &bindings, bytes)
            }
        }
    };
}
pub(crate) use kernel;

macro_rules! element {
    (f32) => {
        "float"
    };
    (u32) => {
        "uint"
    };
    (u8) => {
        "uchar"
    };
}
pub(crate) use element;

macro_rules! access {
    (read) => {
        $crate::source::Access::Read
    };
    (write) => {
        $crate::source::Access::Write
    };
}
pub(crate) use access;

/// The structures that the bodies in `file` mention.
pub(crate) fn structures(file: &str) -> Vec<Structures> {
    let mut found = Vec::new();
    macro_rules! each {
        ($($kernel:ident)*) => {
            $(if $kernel::FILE == file { found.push($kernel::structures()); })*
        };
    }
    each!(RmsNorm Around Swiglu Add Gated Columns Gather Combine Rope Attention AttentionJoin LatentIn LatentOut PlaceHeads PlaceLatent Route Argmax);
    each!(GreedyPart GreedyJoin DrawCount DrawGather DrawChoose TakeTokens CopyWords SwigluPairs SortPairs ExpertTiles ExpertGemm ExpertTrellisGemm);
    each!(DecodeRows Gemv TrellisGemv Gemm TrellisGemm SimpleLinear SimpleTrellis);
    each!(ToHalves NormToHalves SwigluToHalves FinishProducts PanelRows PanelTrellis);
    each!(ContextHalves ExpandedHalves AttentionTiles PackRows TrellisStream TrellisExperts PackForCodes GroupedStream);
    each!(PairHalves ExpertTrellisMma ExpertRowsMma);
    if file == PackRows::FILE {
        found.push(TrellisStream::structures());
    }
    found
}

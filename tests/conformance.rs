//! `docs/spec-conformance.md` says of every field of the runtime-spec what becomes of it and which test shows it. These tests
//! keep it whole: every field that the parser knows has a row, and every test that a row names exists.

use oci_spec::runtime::Spec;
use serde::Deserialize;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

type Error = de::value::Error;

/// A deserializer of nothing: it gives every type what that asks for, and notes the fields asked for on the way.
struct Tracer<'a> {
    path: String,
    fields: &'a RefCell<BTreeSet<String>>,
}

impl Tracer<'_> {
    fn at(&self, path: String) -> Self {
        Self { path, ..*self }
    }

    /// A text that the type at this path takes.
    fn text(&self) -> &'static str {
        match self.path.as_str() {
            path if path.contains("capabilities.") => "CAP_KILL",
            path if path.contains("execCPUAffinity") => "0",
            _ => "",
        }
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit(0 as $type)
        })*
    };
}

impl<'de> Deserializer<'de> for Tracer<'_> {
    type Error = Error;

    numbers! {
        deserialize_i8 visit_i8 i8  deserialize_i16 visit_i16 i16  deserialize_i32 visit_i32 i32
        deserialize_i64 visit_i64 i64  deserialize_u8 visit_u8 u8  deserialize_u16 visit_u16 u16
        deserialize_u32 visit_u32 u32  deserialize_u64 visit_u64 u64
        deserialize_f32 visit_f32 f32  deserialize_f64 visit_f64 f64
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(self.text())
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(false)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let path = format!("{}[]", self.path);
        visitor.visit_seq(Once(Some(self.at(path))))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Members {
            names: ["*"].iter(),
            current: "",
            of: self,
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Members {
            names: fields.iter(),
            current: "",
            of: self,
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(First(variants[0]))
    }

    serde::forward_to_deserialize_any! {
        char str string bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// A list of one.
struct Once<'a>(Option<Tracer<'a>>);

impl<'de> SeqAccess<'de> for Once<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.take().map(|item| seed.deserialize(item)).transpose()
    }
}

/// The members of a structure, or the one of a map.
struct Members<'a> {
    names: std::slice::Iter<'static, &'static str>,
    current: &'static str,
    of: Tracer<'a>,
}

impl<'de> MapAccess<'de> for Members<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(name) = self.names.next() else { return Ok(None) };
        self.current = name;
        seed.deserialize((*name).into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let path = format!("{}.{}", self.of.path, self.current);
        let path = path.trim_start_matches('.').to_owned();
        if self.current != "*" {
            self.of.fields.borrow_mut().insert(path.clone());
        }
        seed.deserialize(self.of.at(path))
    }
}

/// The first variant of an enumeration.
struct First(&'static str);

impl<'de> EnumAccess<'de> for First {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        Ok((seed.deserialize(self.0.into_deserializer())?, self))
    }
}

impl<'de> VariantAccess<'de> for First {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Error> {
        Err(de::Error::custom("no enumeration of the specification has content"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("no enumeration of the specification has content"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("no enumeration of the specification has content"))
    }
}

/// Every field that the types know, e.g. `linux.namespaces[].path`.
fn fields<T: for<'de> Deserialize<'de>>() -> BTreeSet<String> {
    let fields = RefCell::default();
    let tracer = Tracer {
        path: String::new(),
        fields: &fields,
    };
    if let Err(error) = T::deserialize(tracer) {
        panic!("{error}, after {:?}", fields.borrow().last());
    }
    fields.into_inner()
}

#[test]
fn show() {
    for f in fields::<Spec>() {
        println!("{f}");
    }
}

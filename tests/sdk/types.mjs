// Checks values against the types that a package declares in its .d.mts files: the part of
// TypeScript that generated clients use.

import fs from "node:fs";
import path from "node:path";

const PRIMITIVES = {
  string: (value) => typeof value === "string",
  number: (value) => typeof value === "number",
  boolean: (value) => typeof value === "boolean",
  null: (value) => value === null,
  undefined: (value) => value === undefined,
  void: (value) => value === undefined || value === null || value === "",
  unknown: () => true,
};

// A reader of one declaration file.
class Parser {
  constructor(text) {
    this.tokens = text.replace(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, "").match(/'[^']*'|"[^"]*"|[\w$]+|=>|\S/g) ?? [];
    this.at = 0;
  }
  peek() {
    return this.tokens[this.at];
  }
  takes(token) {
    if (this.peek() !== token) return false;
    this.at += 1;
    return true;
  }
  next() {
    this.at += 1;
    return this.tokens[this.at - 1];
  }
  expect(token) {
    const found = this.next();
    if (found !== token) throw new Error(`${token} expected, ${found} found at ${this.tokens.slice(this.at - 9, this.at)}`);
  }
  type() {
    const union = [];
    this.takes("|");
    do union.push(this.element());
    while (this.takes("|"));
    return union.length === 1 ? union[0] : { union };
  }
  element() {
    let type = this.primary();
    while (this.takes("[")) {
      this.expect("]");
      type = { array: type };
    }
    return type;
  }
  primary() {
    if (this.peek() === "{") return this.object();
    if (this.takes("(")) {
      const type = this.type();
      this.expect(")");
      return type;
    }
    const token = this.next();
    if (/^['"]/.test(token)) return { literal: token.slice(1, -1) };
    if (token === "true" || token === "false") return { literal: token === "true" };
    if (/^\d+$/.test(token)) return { literal: Number(token) };
    if (!/^[\w$]+$/.test(token)) throw new Error(`a type expected, ${token} found`);
    const name = [token];
    while (this.takes(".")) name.push(this.next());
    const parameters = [];
    if (this.takes("<")) {
      do parameters.push(this.type());
      while (this.takes(","));
      this.expect(">");
    }
    if (name[0] === "Array") return { array: parameters[0] };
    return { name, parameters };
  }
  object() {
    const fields = {};
    let index;
    this.expect("{");
    while (!this.takes("}")) {
      this.takes("readonly");
      if (this.takes("[")) {
        while (!this.takes("]")) this.next();
        this.expect(":");
        index = this.type();
      } else {
        const name = this.next().replace(/^['"]|['"]$/g, "");
        const optional = this.takes("?");
        this.expect(":");
        fields[name] = { optional, type: this.type() };
      }
      if (!this.takes(";")) this.takes(",");
    }
    return { fields, index };
  }
}

export class Types {
  constructor(root) {
    this.root = root;
    this.files = {};
  }

  // Text, imports and parsed types of a declaration file.
  file(name) {
    this.files[name] ??= (() => {
      const text = fs.readFileSync(path.join(this.root, name), "utf8");
      const imports = {};
      for (const [, what, from] of text.matchAll(/^import (?:type )?(.*?) from "(\..*?)";$/gm)) {
        const target = path.join(path.dirname(name), from.replace(/\.mjs$/, ".d.mts"));
        const all = what.match(/^\* as (\w+)$/);
        if (all) imports[all[1]] = { file: target, name: [] };
        for (const [, one] of what.matchAll(/(?:^\{|,) *(?:type )?(\w+)(?= *[,}])/g)) imports[one] = { file: target, name: [one] };
      }
      return { text, imports, types: {} };
    })();
    return this.files[name];
  }

  // Finds the declaration of a name that is used in a file, inside of `scope`.
  find(file, scope, name) {
    const { text, imports, types } = this.file(file);
    for (let depth = scope.length; depth >= 0; depth -= 1) {
      const full = [...scope.slice(0, depth), ...name];
      const key = full.join(".");
      types[key] ??= this.declared(text, full);
      if (types[key]) return { file, scope: full, type: types[key] };
    }
    const found = imports[name[0]];
    if (!found) throw new Error(`${name.join(".")} is not declared for ${file}`);
    return this.find(found.file, [], [...found.name, ...name.slice(1)]);
  }

  declared(text, name) {
    let part = text;
    for (const space of name.slice(0, -1)) {
      const start = part.match(new RegExp(`^( *)(?:export )?(?:declare )?namespace ${space} \\{$`, "m"));
      if (!start) return null;
      part = part.slice(start.index + start[0].length);
      part = part.slice(0, part.search(new RegExp(`^${start[1]}\\}$`, "m")));
    }
    const indent = " ".repeat(4 * (name.length - 1));
    const start = part.match(
      new RegExp(`^${indent}(?:export )?(?:declare )?(interface|type) ${name.at(-1)}(?: extends ([\\w.]+))? ?(=|(?=\\{))`, "m"),
    );
    if (!start) return null;
    const type = new Parser(part.slice(start.index + start[0].length)).type();
    if (start[2]) type.base = start[2].split(".");
    return type;
  }

  // Problems of a value, as texts.
  *problems(value, type, file, scope, where) {
    if (type.union) {
      const all = type.union.map((one) => [...this.problems(value, one, file, scope, where)]);
      if (all.every((problems) => problems.length > 0)) yield all.flat().join("; or ");
    } else if (type.array) {
      if (!Array.isArray(value)) yield `${where} is no array`;
      else for (const [index, one] of value.entries()) yield* this.problems(one, type.array, file, scope, `${where}[${index}]`);
    } else if (type.fields) {
      if (typeof value !== "object" || value === null || Array.isArray(value)) return yield `${where} is no object`;
      if (type.base) {
        const base = this.find(file, scope, type.base);
        yield* this.problems(value, base.type, base.file, base.scope, where);
      }
      for (const [name, { optional, type: inner }] of Object.entries(type.fields)) {
        if (value[name] !== undefined) yield* this.problems(value[name], inner, file, scope, `${where}.${name}`);
        else if (!optional) yield `${where}.${name} is missing`;
      }
      for (const name of type.index ? Object.keys(value) : [])
        if (!(name in type.fields)) yield* this.problems(value[name], type.index, file, scope, `${where}.${name}`);
    } else if ("literal" in type) {
      if (value !== type.literal) yield `${where} is ${JSON.stringify(value)}, not ${JSON.stringify(type.literal)}`;
    } else if (type.name.length === 1 && type.name[0] in PRIMITIVES) {
      if (!PRIMITIVES[type.name[0]](value)) yield `${where} is ${JSON.stringify(value)}, no ${type.name[0]}`;
    } else {
      const found = this.find(file, scope, type.name);
      yield* this.problems(value, found.type, found.file, found.scope, where);
    }
  }

  // The type of a method's answer, without the promise around it.
  answer(file, method) {
    const { text } = this.file(file);
    const declared = text.match(new RegExp(`^    ${method}\\(.*\\): (?:API|Page)Promise<(.*)>;$`, "m"));
    if (!declared) throw new Error(`${method} is not declared in ${file}`);
    // A page has its own type before that of its entries.
    const type = declared[1].split(", ").at(-1).replace(/^Stream<(.*)>$/, "$1");
    return new Parser(type).type();
  }

  check(value, file, method) {
    const problems = [...this.problems(value, this.answer(file, method), file, [], method)];
    if (problems.length > 0) throw new Error(problems.join("\n"));
  }
}

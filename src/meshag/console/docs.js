/** Draws the OpenAPI document for people: every operation with what it takes, what it answers, and a curl. */

const PLACE = "#/components/schemas/";

/** An element with its children; texts stay texts. */
function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** A text whose words between backticks are code. */
function worded(text) {
  return (text ?? "").split("`").map((part, n) => (n % 2 ? make("code", {}, part) : part));
}

/** The schema itself where it is named. */
function resolved(schema, all) {
  return schema?.$ref ? all[schema.$ref.slice(PLACE.length)] : schema;
}

/** What a schema is, in a few words. */
function kindOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.slice(PLACE.length);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  if ("const" in schema) return JSON.stringify(schema.const);
  const several = schema.anyOf ?? schema.oneOf;
  if (several) return several.map(kindOf).join(" | ");
  if (schema.type === "array") return `[${kindOf(schema.items)}]`;
  if (schema.type === "object" && schema.additionalProperties?.constructor === Object) {
    return `{name: ${kindOf(schema.additionalProperties)}}`;
  }
  return [schema.type ?? "anything"].flat().join(" | ");
}

/** The names of the schemas that a schema mentions. */
function named(schema, found = new Set()) {
  if (Array.isArray(schema)) {
    schema.forEach((one) => named(one, found));
  } else if (schema !== null && typeof schema === "object") {
    if (typeof schema.$ref === "string") found.add(schema.$ref.slice(PLACE.length));
    Object.values(schema).forEach((one) => named(one, found));
  }
  return found;
}

function fields(schema) {
  const needed = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([name, one]) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, make("code", {}, name), needed.has(name) ? "" : " (optional)"),
      make("td", {}, make("code", {}, kindOf(one)), " ", ...worded(one.description)),
    ),
  );
  return make("table", {}, make("tbody", {}, ...rows));
}

/** A schema's fields, and those of every schema that it mentions, each once. */
function shape(schema, all) {
  const parts = [];
  const top = resolved(schema, all);
  if (top?.properties) parts.push(fields(top));
  else parts.push(make("p", {}, make("code", {}, kindOf(schema)), " ", ...worded(top?.description)));
  const waiting = [...named(top)];
  const seen = new Set(schema.$ref ? [schema.$ref.slice(PLACE.length)] : []);
  while (waiting.length) {
    const name = waiting.shift();
    if (seen.has(name)) continue;
    seen.add(name);
    waiting.push(...named(all[name]));
    parts.push(make("h4", {}, name), make("p", { class: "quiet" }, ...worded(all[name].description)), fields(all[name]));
  }
  return parts;
}

function curl(path, method, operation, body) {
  const words = ["curl"];
  if (method !== "get") words.push("-X", method.toUpperCase());
  words.push(`'${location.origin}${path}'`);
  if (operation.security.some((one) => "key" in one)) words.push('-H "Authorization: Bearer $MESHAG_API_KEY"');
  if (body !== undefined) {
    words.push("-H 'content-type: application/json'", `-d '${JSON.stringify(body).replaceAll("'", "'\\''")}'`);
  }
  return words.join(" ");
}

function drawn(path, method, operation, all) {
  const name = operation.operationId;
  const parts = operation.description ? [make("p", {}, ...worded(operation.description))] : [];
  const scope = operation["x-scope"];
  if (scope) parts.push(make("p", { class: "quiet" }, "Where API keys are needed: one with the scope ", scope, "."));
  if (operation.parameters.length) {
    const rows = operation.parameters.map((one) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, make("code", {}, one.name), one.required ? "" : " (optional)"),
        make("td", {}, `in the ${one.in}: `, make("code", {}, kindOf(one.schema)), " ", ...worded(one.description)),
      ),
    );
    parts.push(make("h4", {}, "Parameters"), make("table", {}, make("tbody", {}, ...rows)));
  }
  const content = operation.requestBody?.content["application/json"];
  if (content) parts.push(make("h4", {}, "Body"), ...shape(content.schema, all));
  const examples = Object.entries(content?.examples ?? { "": {} });
  for (const [what, { value }] of examples) {
    parts.push(make("h4", {}, what ? `Example: ${what}` : "Example"));
    parts.push(make("pre", { tabindex: "0" }, curl(path, method, operation, value)));
  }
  for (const [status, answer] of Object.entries(operation.responses)) {
    const kinds = Object.entries(answer.content ?? {});
    parts.push(make("h4", {}, `${status} `, ...worded(answer.description)));
    for (const [media, { schema }] of kinds) {
      if (media === "application/json") parts.push(...shape(schema, all));
      else if (media !== "application/problem+json") parts.push(make("p", {}, make("code", {}, media)));
    }
  }
  const line = make("summary", {}, make("code", { class: "method" }, method.toUpperCase()), make("code", {}, path));
  line.append(" ", make("span", { class: "quiet" }, ...worded(operation.summary)));
  return make("details", { id: name }, line, ...parts);
}

function draw(api) {
  const all = api.components.schemas;
  document.getElementById("about").textContent = `${api.info.summary} Version ${api.info.version}.`;
  const list = make("ul", {});
  const main = document.getElementById("operations");
  for (const { name } of api.tags) {
    const found = Object.entries(api.paths).flatMap(([path, methods]) =>
      Object.entries(methods)
        .filter(([, operation]) => operation.tags.includes(name))
        .map(([method, operation]) => drawn(path, method, operation, all)),
    );
    if (!found.length) continue;
    list.append(make("li", {}, make("a", { href: `#${name}` }, name)));
    main.append(make("section", { "aria-labelledby": name }, make("h2", { id: name }, name), ...found));
  }
  document.getElementById("tags").append(list);
  const wanted = location.hash && document.getElementById(location.hash.slice(1));
  if (wanted instanceof HTMLDetailsElement) {
    wanted.open = true;
    wanted.scrollIntoView();
  }
}

try {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`the service answered ${answer.status}`);
  draw(await answer.json());
} catch (error) {
  document.getElementById("about").textContent = "";
  document.getElementById("problem").textContent = `The document cannot be shown: ${error.message}`;
}

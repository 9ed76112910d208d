// Listening to the callbacks that ComfyUI calls on nodes and widgets.

/** Calls `react` with the same arguments after a callback of an object, whether it has one yet or not. */
export function after(object, name, react) {
  const before = object[name]
  object[name] = function (...given) {
    const result = before?.apply(this, given)
    react(...given)
    return result
  }
}

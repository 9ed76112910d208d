// What a preset changes: pure, tested by tests/web/training/preset_values.test.mjs.

export const CUSTOM = 'custom'

/** [name, value] of each widget that the preset fills in; none for "custom" and unknown names. */
export function changes(presets, name, widgetNames) {
  const values = presets?.[name] ?? {}
  return Object.entries(values).filter(([widget]) => widgetNames.includes(widget))
}

/** The preset whose values the widgets have, or "custom". */
export function presetOf(presets, values) {
  for (const [name, preset] of Object.entries(presets ?? {})) {
    if (Object.entries(preset).every(([widget, value]) => values[widget] === value)) return name
  }
  return CUSTOM
}

// What was measured of a preview's videos, in words: pure, tested by tests/web/shared/measured.test.mjs.

const NAMES = ['motion', 'base_motion', 'likeness', 'base_likeness']

/** Of an event Previewed, or of a preview of GET /wantune/runs/{run}: a list of numbers by name, one for each video. */
export const measuredOf = (preview) => Object.fromEntries(NAMES.map((name) => [name, preview[name] ?? []]))

/** Of one of its videos: a number, or null, by name. */
export const ofVideo = (preview, index) =>
  Object.fromEntries(NAMES.map((name) => [name, preview[name]?.[index] ?? null]))

/** [key, values] for t(): what is said of it; nothing where nothing was measured. */
export function described({ motion, base_motion: baseMotion, likeness, base_likeness: base }) {
  const parts = []
  if (likeness !== null && base !== null) {
    parts.push(['chart.likeness_of', { likeness: likeness.toFixed(2), base: base.toFixed(2) }])
  } else if (likeness !== null) parts.push(['chart.likeness', { likeness: likeness.toFixed(2) }])
  if (motion !== null && baseMotion) parts.push(['chart.motion', { motion: (motion / baseMotion).toFixed(2) }])
  return parts
}

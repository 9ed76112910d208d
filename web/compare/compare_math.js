// The arithmetic of the video player: pure, tested by tests/web/compare/compare_math.test.mjs.

const SLOW = 0.03 // least and largest change of the playback rate
const FAST = 0.25

const ACTIONS = new Map([
  [' ', 'play'], [',', 'back'], ['.', 'forward'], ['l', 'loop'],
  ['b', 'blink'], ['s', 'split'], ['d', 'side'], ['f', 'large'],
])

/** A number limited to low..high; low where it is not finite. */
export function clamp(value, low, high) {
  return Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : low
}

/** Where the split stands, 0..1, when the pointer is at `x` over a box from `left` of this width. */
export function splitAt(x, left, width) {
  return width > 0 ? clamp((x - left) / width, 0, 1) : 0.5
}

/** The split after a key on its handle, or null for a key that does not move it. */
export function splitAfterKey(split, key, isLarge = false) {
  const step = isLarge ? 0.1 : 0.02
  const moved = new Map([
    ['ArrowLeft', split - step],
    ['ArrowDown', split - step],
    ['ArrowRight', split + step],
    ['ArrowUp', split + step],
    ['PageDown', split - 0.1],
    ['PageUp', split + 0.1],
    ['Home', 0],
    ['End', 1],
  ]).get(key)
  return moved === undefined ? null : clamp(Math.round(moved * 1000) / 1000, 0, 1)
}

/** The frame that is shown at a time, counted from 0. */
export function frameAt(seconds, fps, frames) {
  return clamp(Math.floor(seconds * fps + 1e-3), 0, Math.max(0, frames - 1))
}

/** A time, in seconds, at which a frame is certainly shown: its middle, as browsers round its ends differently. */
export function timeOf(frame, fps) {
  return (frame + 0.5) / fps
}

/** The frame so many away; beyond the ends it goes round when looping, and stays otherwise. */
export function stepped(frame, by, frames, isLooping) {
  if (frames < 1) return 0
  const next = frame + by
  return isLooping ? ((next % frames) + frames) % frames : clamp(next, 0, frames - 1)
}

/**
 * How a video that runs `drift` seconds ahead of the clock comes back: {seek: true} when it is a frame off or more,
 * else {rate}, a playback rate that makes up for the difference unnoticed.
 */
export function correction(drift, fps) {
  const frame = 1 / fps
  if (!Number.isFinite(drift)) return { rate: 1 }
  if (Math.abs(drift) >= 1.5 * frame) return { seek: true }
  if (Math.abs(drift) < 0.1 * frame) return { rate: 1 }
  return { rate: 1 - Math.sign(drift) * Math.min(FAST, Math.max(SLOW, Math.abs(drift) / frame / 2)) }
}

/** Which of base and tuned can be seen: blink shows one of them. */
export function visible(mode, isTunedShown) {
  return mode === 'blink' ? { base: !isTunedShown, tuned: isTunedShown } : { base: true, tuned: true }
}

/** What a key means to the player, or null: then it is not ours. */
export function actionOf({ key, ctrlKey, metaKey, altKey }) {
  if (ctrlKey || metaKey || altKey) return null
  return ACTIONS.get(key.toLowerCase()) ?? null
}

/** The proportions of the stage: side by side it is twice as wide. */
export function ratioOf({ width, height }, mode) {
  return (width * (mode === 'side' ? 2 : 1)) / height
}

/** Whether two answers of the server show the same, so that a player need not begin anew. */
export function isSame(one, other) {
  return JSON.stringify(one) === JSON.stringify(other)
}

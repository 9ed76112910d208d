// One or two videos that play in step: the first is the clock, the second is kept at the same frame.

import { correction, frameAt, stepped, timeOf } from './compare_math.js'

const once = (video, events) =>
  new Promise((resolve) => {
    const done = () => {
      for (const name of events) video.removeEventListener(name, done)
      resolve()
    }
    for (const name of events) video.addEventListener(name, done)
  })

function sought(video, time) {
  if (!video.seeking && Math.abs(video.currentTime - time) < 1e-4) return Promise.resolve()
  const arrived = once(video, ['seeked', 'error', 'emptied'])
  video.currentTime = time
  return arrived
}

function loaded(video) {
  if (video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA) return Promise.resolve()
  return once(video, ['loadeddata', 'error', 'emptied'])
}

export class VideoPair {
  #frame = 0
  #isWanted = false
  #isSeen = true
  #isAligning = false
  #watch = 0

  /** `videos`: one or two elements with a source; `react(frame, isPlaying)` is called when either changes. */
  constructor(videos, { fps, frames, react }) {
    this.videos = videos
    this.fps = fps
    this.frames = frames
    this.isLooping = true
    this.react = react
    videos[0].addEventListener('ended', this.#ended)
    this.#followClock()
  }

  get isPlaying() {
    return this.#isWanted
  }

  /** Resolves to whether every video can be shown. */
  async ready() {
    await Promise.all(this.videos.map(loaded))
    return this.videos.every((video) => !video.error && video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA)
  }

  async play() {
    this.#isWanted = true
    this.#tell()
    if (this.#frame >= this.frames - 1 && this.frames > 1) await this.seek(0)
    await this.#resume()
  }

  pause() {
    this.#isWanted = false
    for (const video of this.videos) video.pause()
    this.seek(this.#frame)
  }

  /** Moves by so many frames, and pauses. */
  step(by) {
    this.#isWanted = false
    for (const video of this.videos) video.pause()
    return this.seek(stepped(this.#frame, by, this.frames, this.isLooping))
  }

  async seek(frame) {
    this.#frame = frame
    this.#tell()
    await Promise.all(this.videos.map((video) => sought(video, timeOf(frame, this.fps))))
  }

  /** Pauses the videos while they are out of view, so that nothing is decoded. */
  setSeen(isSeen) {
    this.#isSeen = isSeen
    if (!isSeen) for (const video of this.videos) video.pause()
    else if (this.#isWanted) this.#align()
  }

  close() {
    this.#isWanted = false
    this.react = () => {}
    const [clock] = this.videos
    clock.removeEventListener('ended', this.#ended)
    clock.cancelVideoFrameCallback?.(this.#watch)
    if (!clock.requestVideoFrameCallback) cancelAnimationFrame(this.#watch)
    for (const video of this.videos) {
      video.pause()
      video.removeAttribute('src')
      video.load()
    }
  }

  async #resume() {
    if (!this.#isWanted || !this.#isSeen) return
    // play() rejects when the video is paused, or its source removed, before it starts
    await Promise.all(this.videos.map((video) => video.play().catch(() => {})))
  }

  #ended = async () => {
    if (!this.#isWanted) return
    if (this.isLooping) {
      await this.seek(0)
      await this.#resume()
    } else {
      this.#isWanted = false
      await this.seek(this.frames - 1)
    }
  }

  #followClock() {
    const [clock] = this.videos
    const next = () => {
      this.#watch = clock.requestVideoFrameCallback?.(tick) ?? requestAnimationFrame(tick)
    }
    const tick = (_now, shown) => {
      if (this.#isWanted && !clock.seeking) {
        this.#frame = frameAt(shown?.mediaTime ?? clock.currentTime, this.fps, this.frames)
        this.#tell()
        this.#correct()
      }
      next()
    }
    next()
  }

  #correct() {
    const [clock, other] = this.videos
    if (!other || this.#isAligning || other.seeking || clock.ended || other.ended) return
    const needed = correction(other.currentTime - clock.currentTime, this.fps)
    if (needed.seek) this.#align()
    else other.playbackRate = needed.rate
  }

  async #align() {
    if (this.#isAligning) return
    this.#isAligning = true
    for (const video of this.videos) {
      video.pause()
      video.playbackRate = 1
    }
    await this.seek(this.#frame)
    this.#isAligning = false
    await this.#resume()
  }

  #tell() {
    this.react(this.#frame, this.#isWanted)
  }
}

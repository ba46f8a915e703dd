// Types of the data and of the drawing functions, for `tsc --checkJs` on the files beside this one.

interface LossOptions {
  beta: number;
  p: number;
  label_smoothing?: number;
  penalty?: number;
  alpha?: number;
  tau?: number;
  calibration?: number;
}

interface Card {
  id: string;
  state: any;
  stage: HTMLElement;
  side: HTMLElement;
  below: HTMLElement;
  key: HTMLElement;
  say(text: string): void;
}

interface Drawn {
  /** Draw everything for the width that the card has now. */
  build(): void;
  /** Show the shared state, in marks that exist. */
  update(): void;
  csv(): string;
}

type Draw = (data: any, card: Card) => Drawn;


